/**
 * What more ports and switches cost: packets per second of the datapath alone with 2 to 254 ports on a switch, traffic on two
 * of them or on all; of two guests with idle ports beside them; of 1 to 8 switches with two guests each, on one and on
 * two datapath threads; memory for each port, and how long a daemon takes to start.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { nm_csb_atok, nm_csb_ktoa } from '../src/abi/index.ts';
import { Lab } from '../src/cli/lab.ts';
import { BUF_SIZE } from '../src/host/config.ts';
import { frame, learnedRig, mac } from '../tests/unit/datapath/rig.ts';
import type { Context, Row } from './bench.ts';
import { conditions } from './bench.ts';
import { COMPILE_MS } from './datapath.ts';
import { RX, stream, TX } from './guests.ts';
import { residentBytes } from './process.ts';

const PORTS = [2, 16, 64, 254];
const SLOTS = 256;
const BATCH = 64;
const SIZE = 60;
const SWITCHES = [1, 2, 4, 8];
const THREADS = [1, 2];

export async function benchGrowth(context: Context): Promise<Row[]> {
  const rows: Row[] = [];
  for (const traffic of ['two', 'all'] as const) {
    for (const ports of PORTS) {
      context.progress(`growth: datapath, ${ports} ports, traffic on ${traffic}`);
      const seen = await context.quiet.wait();
      const mpps = measurePorts(ports, traffic === 'all' ? ports : 2, context.ms);
      rows.push({ bench: 'ports of the datapath', ports, traffic, batch: BATCH, mpps, ...conditions([seen]) });
    }
  }
  for (const idle of [0, ...PORTS.filter((n) => n > 2).map((n) => n - 2)])
    rows.push(await withIdlePorts(context, idle));
  for (const threads of THREADS) {
    for (const switches of SWITCHES) rows.push(await manySwitches(context, switches, threads));
  }
  return rows;
}

/** Millions of packets per second with `active` of `ports` ports: each sends a batch a turn to the next one. */
function measurePorts(ports: number, active: number, ms: number): number {
  const rig = learnedRig(
    4096,
    Array.from({ length: ports }, () => ({ txSlots: SLOTS, rxSlots: SLOTS, bufSize: BUF_SIZE })),
  );
  const { m } = rig;
  const senders = rig.ports.slice(0, active);
  for (const [i, p] of senders.entries()) {
    const tx = p.tx[0]!;
    const bytes = frame(mac(((i + 1) % active) + 1), mac(i + 1), SIZE);
    for (let k = 0; k < SLOTS; k++) {
      m.u8.set(bytes, tx.buf(k));
      m.u64[tx.slot(k) >>> 3] = BigInt(tx.bufIdx(k)) | (BigInt(SIZE) << 32n);
    }
  }
  const heads = senders.map((p) => p.tx[0]!.head);
  const turn = (): void => {
    for (const [i, p] of senders.entries()) {
      const tx = p.tx[0]!;
      const rx = p.rx[0]!;
      heads[i] = (heads[i]! + BATCH) % SLOTS;
      nm_csb_atok.set.cur(m, tx.atok, heads[i]!);
      nm_csb_atok.set.head(m, tx.atok, heads[i]!);
      const tail = nm_csb_ktoa.get.hwtail(m, rx.ktoa);
      nm_csb_atok.set.cur(m, rx.atok, tail);
      nm_csb_atok.set.head(m, rx.atok, tail);
    }
    rig.serve();
  };
  const received = (): number => senders.reduce((n, p) => n + p.rx[0]!.count('packets'), 0);
  const turns = Math.max(1, Math.ceil(10_000 / (active * BATCH)));
  const run = (limit: number): number => {
    const before = received();
    const start = performance.now();
    let elapsed = 0;
    do {
      for (let i = 0; i < turns; i++) turn();
      elapsed = performance.now() - start;
    } while (elapsed < limit);
    return (received() - before) / elapsed / 1e3;
  };
  run(COMPILE_MS);
  const mpps = run(ms);
  rig.close();
  return mpps;
}

/** A daemon of its own, with `idle` ports that nobody uses beside the two of the stream. */
async function withIdlePorts(context: Context, idle: number): Promise<Row> {
  context.progress(`growth: two guests beside ${idle} idle ports`);
  const seen = await context.quiet.wait();
  const begin = performance.now();
  const lab = await Lab.start();
  const startMs = performance.now() - begin;
  try {
    const before = residentBytes(lab.daemonPid);
    const opening = performance.now();
    const holder = idle === 0 ? undefined : await holdPorts(lab.runDir, idle);
    const openMs = idle === 0 ? Number.NaN : (performance.now() - opening) / idle;
    const perPort = idle === 0 ? Number.NaN : (residentBytes(lab.daemonPid) - before) / idle / 1024;
    try {
      const ms = Math.max(500, context.ms);
      const { mpps } = await stream(lab, { tx: TX, rx: RX, size: SIZE, slots: 4096, batch: 1024 }, ms);
      return {
        bench: 'guests beside idle ports',
        idle,
        mpps,
        daemonStartMs: startMs,
        openMsPerPort: openMs,
        daemonKiBPerPort: perPort,
        ...conditions([seen]),
      };
    } finally {
      holder?.kill();
      if (holder !== undefined) await once(holder, 'close');
    }
  } finally {
    await lab.stop();
  }
}

/** A daemon of its own; all pairs of guests send at the same time. Counted by the daemon, as no two pairs begin at once. */
async function manySwitches(context: Context, switches: number, threads: number): Promise<Row> {
  context.progress(`growth: ${switches} switches, ${threads} threads`);
  const seen = await context.quiet.wait();
  const lab = await Lab.start(['--threads', String(threads)]);
  const received = async (): Promise<number> => {
    const { domains } = await lab.status();
    return domains.flatMap((d) => d.ports.flatMap((p) => p.rxRings)).reduce((sum, ring) => sum + ring.packets, 0);
  };
  try {
    let arrived = 0;
    let mpps = Number.NaN;
    let measured = (): void => undefined;
    const over = new Promise<void>((resolve) => (measured = resolve));
    // The last pair that is ready measures for all.
    const during = async (): Promise<void> => {
      if (++arrived < switches) return over;
      const before = await received();
      const start = performance.now();
      await setTimeout(Math.max(500, context.ms));
      const after = await received();
      mpps = (after - before) / (performance.now() - start) / 1e3;
      measured();
    };
    const pair = (i: number): Promise<unknown> =>
      stream(lab, { tx: `vale${i}:tx`, rx: `vale${i}:rx`, size: SIZE, slots: 1024, batch: 256 }, 0, during);
    await Promise.all(Array.from({ length: switches }, (_, i) => pair(i)));
    return { bench: 'switches', switches, threads, guests: 2 * switches, mpps, ...conditions([seen]) };
  } finally {
    await lab.stop();
  }
}

/** A process that opens ports and does nothing with them. */
async function holdPorts(runDir: string, count: number): Promise<ReturnType<typeof spawn>> {
  const script = fileURLToPath(new URL('hold-ports.js', import.meta.url));
  const child = spawn(process.execPath, [script, runDir, String(count)], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ready = await Promise.race([
    once(child.stdout, 'data').then(() => true),
    once(child, 'close').then(() => false),
  ]);
  if (!ready) throw new Error(`a process that was to open ${count} ports failed`);
  return child;
}
