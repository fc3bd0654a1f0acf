/** `ptnet lb`: netmap's load balancer, from a port to pipes. docs/lb.md describes it. */
import { setImmediate } from 'node:timers/promises';
import type { Command } from 'commander';
import { type NetmapPort, openPort, POLLIN, POLLOUT, PortSet } from '../../api/index.ts';
import { type CommonFlags, collect, command } from '../command.ts';
import { Balancer, Output } from '../lb/balancer.ts';
import { type LbFlags, type LbJob, parseLb, pipeNames } from '../lb/options.ts';
import { Stats } from '../lb/stats.ts';
import { regionOf } from '../regions.ts';
import { Cancel, waitSeconds } from '../signals.ts';

/** Longest time in poll(2) without a look at signals, and the same while there is work. */
const POLL_MS = 100;
const BREATH_MS = 10;

export function lbCommand(): Command {
  return command('lb', 'distribute the packets of a port to pipes, a connection always to the same', [
    ['ptnet lb -i vale0:x -p 4', 'to four pipes, vale0:x}0 to vale0:x}3'],
    ['ptnet lb -i vale0:x/r -p ids:2 -p log:1', 'a copy of what x receives, first to two ids, then to one log'],
    ["ptnet pkt-gen -i 'netmap:ids}0' -f rx", 'the receiving end of one of them'],
  ])
    .option('-i <port>', 'the port to read from')
    .option('-p <[name:]number>', 'a group of pipes; the next -p gets what the group before has read', collect)
    .option('-B <buffers>', 'extra buffers, which hold what a full pipe cannot take (default: 8192)')
    .option('-b <batch>', 'most packets between two looks at the input (default: 2048)')
    .option('-w <seconds>', 'wait before starting (default: 0)')
    .option('-W', 'wait busily: fastest, with all of one CPU')
    .option('-s <seconds>', 'statistics in the log (stderr) so often (default: 0, never)')
    .option('-o <seconds>', 'statistics on stdout so often, as JSON lines (default: 0, never)')
    .action((flags: LbFlags & CommonFlags) => lb(flags));
}

const log = (text: string): void => void process.stderr.write(`${text}\n`);

async function lb(flags: LbFlags & CommonFlags): Promise<void> {
  const job = parseLb(flags);
  const pipes = pipeNames(job.groups, job.port.replace(/[-^*/@].*$/, ''));
  using cancel = new Cancel();
  const ports: NetmapPort[] = [];
  try {
    const open = async (name: string, extraBufs = 0): Promise<NetmapPort> => {
      const port = await openPort(name, { extraBufs, ...(flags.runDir === undefined ? {} : { runDir: flags.runDir }) });
      ports.push(port);
      return port;
    };
    // All in one region with room; that of the user's choice if he says one.
    const said = regionOf(job.port);
    const region = said ?? `@lb${process.pid}`;
    const input = await open(said === undefined ? job.port + region : job.port, job.extraBufs);
    const groups: Output[][] = [];
    for (const names of pipes) {
      const outputs: Output[] = [];
      for (const name of names) {
        const port = await open(`${name}/xT${region}`);
        if (port.memId !== input.memId)
          throw new Error(`${name} lies in another region than ${job.port}: close it first`);
        outputs.push(new Output(name, port, input.extraBufs.length));
      }
      groups.push(outputs);
    }
    log(
      `${job.port} to ${groups
        .flat()
        .map((o) => o.name.replace('{', '}'))
        .join(' ')}`,
    );
    log(`${input.extraBufs.length} extra buffers`);
    await waitSeconds(job.waitSeconds, cancel);
    const balancer = new Balancer(groups, input.extraBufs);
    try {
      await lbLoop(job, input, ports.slice(1), balancer, cancel);
    } finally {
      balancer.end();
      process.stdout.write(totalText(balancer)); // also when a port is gone
    }
  } finally {
    for (const port of ports.toReversed()) await port.close();
  }
}

function totalText({ groups, dropped }: Balancer): string {
  const forwarded = groups.flat().reduce((sum, o) => sum + o.packets, 0);
  return `${forwarded} packets forwarded.  ${dropped} packets dropped. Total ${forwarded + dropped}\n`;
}

/** Statistics that are due every so many seconds; 0: never. */
class Report {
  readonly #stats: Stats;
  readonly #ms: number;
  readonly #print: (line: Record<string, unknown>) => void;
  #due: number;

  constructor(seconds: number, stats: Stats, print: (line: Record<string, unknown>) => void) {
    this.#stats = stats;
    this.#ms = seconds > 0 ? 1000 * seconds : Number.POSITIVE_INFINITY;
    this.#print = print;
    this.#due = performance.now() + this.#ms;
  }

  /** Prints what is due. */
  print(now: number): void {
    if (now < this.#due) return;
    this.#due = now + this.#ms;
    for (const line of this.#stats.lines(now)) this.#print(line);
  }
}

/** Distributes until cancelled. @param pipes ports of the balancer's outputs, in order */
async function lbLoop(
  job: LbJob,
  input: NetmapPort,
  pipes: readonly NetmapPort[],
  balancer: Balancer,
  cancel: { readonly cancelled: boolean },
): Promise<void> {
  const { createLogger } = await import('../../host/log.ts'); // other commands do without the host's packages
  const logger = createLogger('info');
  const set = new PortSet([input, ...pipes]);
  set.events[0] = POLLIN;
  let breathAt = 0;
  const reports = [
    new Report(job.stdoutSeconds, new Stats(job.port, balancer, performance.now()), (line) => {
      process.stdout.write(`${JSON.stringify(line)}\n`);
    }),
    new Report(job.logSeconds, new Stats(job.port, balancer, performance.now()), (line) => logger.info(line, 'lb')),
  ];
  while (!cancel.cancelled) {
    const now = performance.now();
    if (now >= breathAt) {
      await setImmediate();
      breathAt = now + BREATH_MS;
      for (const report of reports) report.print(now);
    }
    for (let i = 0; i < pipes.length; i++) {
      // What a pipe has not taken back is waited for; its tail tells.
      const ring = pipes[i]!.txRings[0]!;
      const pending = ring.next(ring.tail) !== ring.head;
      ring.cur = pending ? ring.tail : ring.head;
      set.events[i + 1] = pending ? POLLOUT : 0;
    }
    set.poll(job.busyWait ? 0 : POLL_MS);
    balancer.passOn();
    balancer.drain();
    for (const ring of input.rxRings) balancer.take(input, ring, job.batch);
  }
  set.poll(0);
}
