/**
 * `npm run bench -- slices`: two guests through VALE at 1500 bytes beside C's limits, all of them alive at once, each for a slice
 * of time while the others are stopped (SIGSTOP). What a copy costs depends on the machine's memory, which on shared machines
 * changes its speed within seconds: slices of 100 ms in random order meet the same machine where runs of seconds do not.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { setTimeout } from 'node:timers/promises';
import { Lab } from '../src/cli/lab.ts';
import { usableCpus } from '../src/os/index.ts';
import type { Context, Figure, Row } from './bench.ts';
import { conditions, ratio } from './bench.ts';
import { type Count, RX, startStream, streamed, TX } from './guests.ts';
import { GOALS, SLOTS } from './peers.ts';
import { compilePrograms, programPath } from './programs.ts';
import type { Conditions } from './quiet.ts';
import { median } from './quiet.ts';

const SIZE = 1500;
/** Packets that C's sender hands over at a time, and the addresses it sends to. */
const BATCH = 256;

/** What is measured in slices: processes that are stopped and go on. */
interface Contestant {
  readonly name: string;
  /** Sends a signal to all of its processes. */
  signal(signal: 'SIGSTOP' | 'SIGCONT'): void;
  count(): Promise<Count>;
  /** Lets it end by itself. @throws Error if what was received is not what was counted */
  finish(): Promise<void>;
  /** Ends it, whatever it does; more than once does no harm. */
  kill(): Promise<void>;
}

export async function benchSlices(context: Context): Promise<Row[]> {
  const all: Contestant[] = [];
  const missing: Row[] = [];
  // Who is stopped does not end by Ctrl-C: it goes on first.
  const interrupted = new AbortController();
  const interrupt = (): void => interrupted.abort(new Error('interrupted'));
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) process.on(signal, interrupt);
  try {
    for (const [name, start] of contestants(missing)) {
      if (!context.only.test(`${name}, ${SIZE} bytes`)) continue;
      context.progress(`slices: starting ${name}`);
      const contestant = await start(name);
      contestant.signal('SIGSTOP');
      all.push(contestant);
      interrupted.signal.throwIfAborted();
    }
    const rows = await compare(context, all, interrupted.signal);
    for (const contestant of all) {
      contestant.signal('SIGCONT');
      await contestant.finish();
    }
    return [...rows, ...missing];
  } finally {
    for (const contestant of all) contestant.signal('SIGCONT');
    await Promise.allSettled(all.map((contestant) => contestant.kill()));
    for (const signal of signals) process.off(signal, interrupt);
  }
}

/** What there is to compare, by name, and how it is started. */
function contestants(missing: Row[]): [string, (name: string) => Promise<Contestant>][] {
  const found: [string, (name: string) => Promise<Contestant>][] = [];
  const [datapathCpu, guestsCpu] = usableCpus();
  for (const slots of SLOTS) found.push([`guests, VALE, ${slots} slots`, (name) => guests(name, slots)]);
  if (guestsCpu === undefined) {
    missing.push({ bench: 'left out', what: 'guests placed', why: 'there is one CPU only' });
  } else {
    for (const slots of SLOTS) {
      const start = (name: string): Promise<Contestant> => guests(name, slots, [datapathCpu!, guestsCpu]);
      found.push([`guests placed, VALE, ${slots} slots`, start]);
    }
  }
  const c = compilePrograms();
  if (typeof c === 'string') {
    missing.push({ bench: 'left out', what: 'C', why: c });
    return found;
  }
  found.push(
    ['C: memcpy, 2 processes', (name) => rings(name, 'rings', 'copy', 2, 1024)],
    ['C: memcpy, 2 processes, 4096 slots', (name) => rings(name, 'rings', 'copy', 2, 4096)],
    ['C: VALE, 3 processes, placed, 16-byte registers', (name) => rings(name, 'rings16', 'vale', 3, 1024)],
    ['C: VALE, 3 processes, placed, 4096 slots', (name) => rings(name, 'rings', 'vale', 3, 4096)],
  );
  return found;
}

/** A daemon and two guests. @param placed CPU of the datapath thread, and of both guests */
async function guests(name: string, slots: number, placed?: readonly [number, number]): Promise<Contestant> {
  const lab = await Lab.start(placed === undefined ? [] : ['--cpus', String(placed[0])]);
  try {
    const shape = { tx: TX, rx: RX, size: SIZE, slots, batch: slots / 4 };
    const stream = await startStream(lab, placed === undefined ? shape : { ...shape, cpu: placed[1] });
    const pids = [lab.daemonPid, ...stream.pids];
    return {
      name,
      signal: (signal) => {
        for (const pid of pids) send(pid, signal);
      },
      count: () => stream.count(),
      finish: () => stream.end(),
      kill: () => lab.stop(),
    };
  } catch (e) {
    await lab.stop();
    throw e;
  }
}

/** A C program of rings.c, which says by itself what it has counted; a process group of its own. */
async function rings(name: string, file: string, how: string, processes: number, slots: number): Promise<Contestant> {
  const args = [how, processes, SIZE, slots, BATCH, BATCH, 0].map(String);
  const child: ChildProcess = spawn(programPath(file), args, { stdio: ['ignore', 'pipe', 'inherit'], detached: true });
  let ended = false;
  child.once('close', () => (ended = true));
  let last: Count | undefined;
  let rest = '';
  let heard: (() => void) | undefined;
  child.stdout?.on('data', (text: Buffer) => {
    const lines = (rest + text.toString()).split('\n');
    rest = lines.pop()!;
    const [us, received] = (lines.at(-1) ?? '').split(' ').map(Number);
    if (us === undefined || received === undefined) return;
    last = { ms: us / 1000, sent: received, received };
    heard?.();
  });
  /** Waits for what it says next, which is at most some ms old. */
  const count = async (): Promise<Count> => {
    await Promise.race([
      new Promise<void>((resolve) => (heard = resolve)),
      setTimeout(5000, undefined, { ref: false }),
    ]);
    heard = undefined;
    if (last === undefined || ended) throw new Error(`${name} (${file} ${args.join(' ')}) says nothing`);
    return last;
  };
  await count();
  return {
    name,
    signal: (signal) => send(-child.pid!, signal),
    count,
    finish: async () => undefined,
    kill: async () => send(-child.pid!, 'SIGKILL'),
  };
}

/** Sends a signal to a process, or, negative, a process group, if it is still there. */
function send(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (e) {
    if ((e as NodeJS.ErrnoException).code !== 'ESRCH') throw e;
  }
}

/** Slices in rounds, everyone once a round, in another order each time; the first half as long again is not counted. */
async function compare(context: Context, all: readonly Contestant[], interrupted: AbortSignal): Promise<Row[]> {
  const rounds = new Map(all.map((c) => [c, { mpps: [] as number[], dropped: [] as number[] }]));
  const seen: Conditions[] = [];
  for (let r = 0; r < context.rounds; r++) {
    context.progress(`slices: round ${r + 1} of ${context.rounds}`);
    seen.push(await context.quiet.wait());
    for (const contestant of shuffled(all)) {
      interrupted.throwIfAborted();
      contestant.signal('SIGCONT');
      await setTimeout(context.ms / 2);
      const before = await contestant.count();
      await setTimeout(context.ms);
      const result = streamed(before, await contestant.count());
      contestant.signal('SIGSTOP');
      const { mpps, dropped } = rounds.get(contestant)!;
      mpps.push(result.mpps);
      dropped.push(result.dropped);
    }
  }
  const figures = [...rounds].map(
    ([{ name }, { mpps }]): Figure => ({ name, value: median(mpps), rounds: mpps, conditions: seen }),
  );
  const limit = figures.find((f) => f.name === 'C: memcpy, 2 processes');
  return figures.map((f, i): Row => {
    const goal = GOALS.find((g) => g.size === SIZE && g.of === f.name && g.by === limit?.name)?.goal;
    return {
      bench: 'slices',
      size: SIZE,
      what: f.name,
      mpps: f.value,
      dropped: median([...rounds.values()][i]!.dropped),
      byMemcpy: ratio(f, limit),
      ...(goal === undefined ? {} : { goal }),
      rounds: f.rounds,
      ...conditions(seen),
    };
  });
}

/** The same in random order (Fisher and Yates). */
function shuffled<T>(list: readonly T[]): T[] {
  const a = [...list];
  for (let i = a.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [a[i], a[j]] = [a[j]!, a[i]!];
  }
  return a;
}
