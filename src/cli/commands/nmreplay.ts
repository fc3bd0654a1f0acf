/** `ptnet nmreplay`: netmap's nmreplay, a capture sent to a port. docs/nmreplay.md describes it. */
import type { Command } from 'commander';
import { openPort } from '../../api/index.ts';
import { pinThread } from '../../os/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { UsageError } from '../errors.ts';
import { parseBandwidth, parseDelay, parseLoss, random } from '../nmreplay/models.ts';
import { Replayed, replay } from '../nmreplay/replay.ts';
import { Schedule, Trace } from '../nmreplay/schedule.ts';
import { whole } from '../numbers.ts';
import { portName } from '../port-names.ts';
import { Cancel, waitSeconds } from '../signals.ts';

interface Flags extends CommonFlags {
  readonly f?: string;
  readonly i?: string;
  readonly B?: string;
  readonly D?: string;
  readonly L?: string;
  readonly b?: string;
  readonly w?: string;
  readonly C?: string;
  readonly v?: boolean;
  readonly loops?: string;
  readonly seed?: string;
}

export function nmreplayCommand(): Command {
  return command('nmreplay', 'send a packet capture to a port, with its timing or another', [
    ['ptnet nmreplay -f trace.pcap -i vale0:x', 'as it was captured, again and again until Ctrl-C'],
    ['ptnet nmreplay -f trace.pcapng -i vale0:x --loops 1 -B real,10', 'once, ten times as fast'],
    ['ptnet nmreplay -f trace.pcap -i vale0:x -B 10M -D uniform,1m,20m -L 0.01', 'over a bad link of 10 Mbit/s'],
  ])
    .option('-f <file>', 'the capture, pcap or pcapng; - is stdin')
    .option('-i <port>', 'the port, e.g. vale0:x')
    .option('-B <bandwidth>', '[constant,]BPS, ether,BPS or real[,SPEEDUP] (default: real)')
    .option('-D <delay>', '[constant,]T, uniform,MIN,MAX or exp,AVERAGE,MIN (default: 0)')
    .option('-L <loss>', '[plr,]P or ber,P (default: 0)')
    .option('-b <burst>', 'most packets at a time (default: 1024)')
    .option('-w <seconds>', 'wait before starting (default: 0)')
    .option('-C <cpu[,cpu[,cpu,cpu]]>', 'pin to a CPU: the first; the other threads of netmap are not there')
    .option('-v', 'say each second what was sent')
    .option('--loops <n>', 'how often the capture is sent; 0 has no end (default: 0)')
    .option('--seed <n>', 'what random delays and losses are made from (default: 1)')
    .action((flags: Flags) => nmreplay(flags));
}

async function nmreplay(flags: Flags): Promise<void> {
  if (flags.f === undefined) throw new UsageError('-f FILE is missing: the capture to send');
  if (flags.i === undefined) throw new UsageError('-i PORT is missing: the port to use, e.g. -i vale0:x');
  const name = portName(flags.i);
  const rnd = random(whole('--seed', flags.seed ?? '1', 0, 2 ** 32 - 1));
  const models = [parseBandwidth(flags.B), parseDelay(flags.D, rnd), parseLoss(flags.L, rnd)] as const;
  const burst = whole('-b', flags.b ?? '1024', 1, 8192);
  const loops = whole('--loops', flags.loops ?? '0', 0, Number.MAX_SAFE_INTEGER) || Number.POSITIVE_INFINITY;
  const wait = whole('-w', flags.w ?? '0', 0, 100);
  const cpu = flags.C === undefined ? undefined : firstCpu(flags.C);
  const trace = Trace.read(flags.f);
  const schedule = new Schedule(trace, loops, ...models);
  if (cpu !== undefined) pinThread(cpu);
  using cancel = new Cancel();
  const port = await openPort(name, flags.runDir === undefined ? {} : { runDir: flags.runDir });
  try {
    process.stderr.write(`${trace.packets} packets from ${flags.f} to ${port.name}\n`);
    await waitSeconds(wait, cancel);
    const start = performance.now();
    const done = await replay(port, trace, schedule, burst, cancel, flags.v ? eachSecond(start) : () => undefined);
    const seconds = (performance.now() - start) / 1000;
    process.stdout.write(
      `Sent ${done.packets} packets ${done.bytes} bytes in ${seconds.toFixed(3)} seconds, ${schedule.lost} lost, ` +
        `at most ${done.late.toFixed(3)} ms late.\n`,
    );
  } finally {
    await port.close();
  }
}

/** -C: one, two or four CPUs, the first of which is the sending thread's. */
function firstCpu(text: string): number {
  const cpus = text.split(',').map((cpu) => whole('-C', cpu, 0, 1023));
  if (![1, 2, 4].includes(cpus.length)) throw new UsageError(`-C ${text}: must be 1, 2 or 4 CPUs, e.g. -C 2`);
  return cpus[0]!;
}

function eachSecond(start: number): (done: Replayed) => void {
  let next = start + 1000;
  let before = 0;
  return (done) => {
    if (performance.now() < next) return;
    next += 1000;
    process.stderr.write(`${done.packets - before} packets\n`);
    before = done.packets;
  };
}
