/** `ptnet lb`: netmap's load balancer, from a port to pipes. docs/lb.md describes it. */
import { setImmediate, setTimeout } from 'node:timers/promises';
import type { Command } from 'commander';
import { type NetmapPort, openPort, POLLIN, POLLOUT, PortSet } from '../../api/index.ts';
import { type CommonFlags, collect, command } from '../command.ts';
import { Balancer, Output } from '../lb/balancer.ts';
import { type LbFlags, type LbJob, parseLb, pipeNames } from '../lb/options.ts';
import { Cancel } from '../signals.ts';

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
    .option('-o <seconds>', 'statistics on stdout so often, as JSON lines (default: 0, never)')
    .action((flags: LbFlags & CommonFlags) => lb(flags));
}

const log = (text: string): void => void process.stderr.write(`${text}\n`);

async function lb(flags: LbFlags & CommonFlags): Promise<void> {
  const job = parseLb(flags);
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
    const base = job.port.replace(/[-^*/@].*$/, '');
    const groups: Output[][] = [];
    for (const names of pipeNames(job.groups, base)) {
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
    if (job.waitSeconds > 0) await setTimeout(job.waitSeconds * 1000);
    const balancer = new Balancer(groups, input.extraBufs);
    await lbLoop(job, input, ports.slice(1), balancer, cancel);
    const forwarded = groups.flat().reduce((sum, o) => sum + o.packets, 0);
    const { dropped } = balancer;
    process.stdout.write(`${forwarded} packets forwarded.  ${dropped} packets dropped. Total ${forwarded + dropped}\n`);
  } finally {
    for (const port of ports.toReversed()) await port.close();
  }
}

/** The region that a port's name says: what stands behind an "@" and is no option. */
export function regionOf(port: string): string | undefined {
  const parts = port.split('@').slice(1);
  const id = parts.find((part) => !/^(conf:|share=|offset|extmem)/.test(part));
  return id === undefined ? undefined : `@${id}`;
}

/** Distributes until cancelled. @param pipes ports of the balancer's outputs, in order */
async function lbLoop(
  job: LbJob,
  input: NetmapPort,
  pipes: readonly NetmapPort[],
  balancer: Balancer,
  cancel: { readonly cancelled: boolean },
): Promise<void> {
  const set = new PortSet([input, ...pipes]);
  set.events[0] = POLLIN;
  let breathAt = 0;
  let statsAt = performance.now() + 1000 * job.statsSeconds;
  while (!cancel.cancelled) {
    const now = performance.now();
    if (now >= breathAt) {
      await setImmediate();
      breathAt = now + BREATH_MS;
      if (job.statsSeconds > 0 && now >= statsAt) {
        statsAt = now + 1000 * job.statsSeconds;
        process.stdout.write(statsText(job, balancer));
      }
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
    for (const ring of input.rxRings) balancer.take(input.m, ring, job.batch);
  }
  set.poll(0);
}

/** As netmap lb's lines: one for each pipe, one for all. */
function statsText(job: LbJob, balancer: Balancer): string {
  const ts = Date.now() / 1000;
  const outputs = balancer.groups.flat();
  const lines = outputs.map((o, i) => ({
    ts,
    interface: o.name,
    output_ring: i,
    packets_forwarded: o.packets,
    packets_dropped: o.dropped,
    overflow_queue_size: o.queue.n,
  }));
  const all = {
    ts,
    interface: job.port,
    output_ring: null,
    packets_received: balancer.received,
    packets_forwarded: outputs.reduce((sum, o) => sum + o.packets, 0),
    packets_dropped: balancer.dropped,
    non_ip_packets: balancer.nonIp,
    free_buffer_slots: balancer.freeBuffers,
  };
  return [...lines, all].map((line) => `${JSON.stringify(line)}\n`).join('');
}
