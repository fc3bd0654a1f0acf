/** `ptnet pkt-gen`: netmap's packet generator on a port of the daemon. docs/pkt-gen.md describes it. */
import type { Command } from 'commander';
import { openPort } from '../../api/index.ts';
import { type CommonFlags, collect, command } from '../command.ts';
import { Frame, type Packet, RawPacket } from '../pkt-gen/frame.ts';
import { CaptureError, CaptureReader } from '../pcap/reader.ts';
import { errno, pinThread, SysError } from '../../os/index.ts';
import { FUNCTIONS, type Job, type PktGenFlags, parseJob } from '../pkt-gen/options.ts';
import { pingLoop, pongLoop } from '../pkt-gen/ping-pong.ts';
import { makeResult, type Outcome, type PktGenResult, summary } from '../pkt-gen/report.ts';
import { SequenceCheck } from '../pkt-gen/sequence.ts';
import { type PktPort, Run } from '../pkt-gen/run.ts';
import { Cancel, waitSeconds } from '../signals.ts';
import { runThreads } from '../pkt-gen/threads.ts';
import { rxLoop, txLoop } from '../pkt-gen/tx-rx.ts';

export function pktGenCommand(): Command {
  return command('pkt-gen', "send, receive or measure packets, with the options of netmap's pkt-gen", [
    ['ptnet pkt-gen -i vale0:a -f rx', 'count what arrives, until Ctrl-C'],
    ['ptnet pkt-gen -i vale0:b -f tx -n 1000000 -l 512', 'send a million packets of 512 bytes'],
    [
      'ptnet pkt-gen -i vale0:b -f tx -R 10000 -d 10.0.0.2:53 -D 02:00:00:00:00:01',
      '10000 packets a second to one address',
    ],
    ['ptnet pkt-gen -i vale0:a -f rxseq', 'see whether what txseq sends arrives whole and in order'],
    ['ptnet pkt-gen -i vale0:a -f pong', 'answer pings'],
    ['ptnet pkt-gen -i vale0:b -f ping -n 10000 --json', 'measure 10000 round trips; the result as JSON'],
  ])
    .option('-i <port>', 'the port, e.g. vale0:x')
    .option('-f <function>', `what to do: ${FUNCTIONS.join(', ')} (default: rx)`)
    .option('-n <count>', 'packets, or round trips; 0 has no end (default: 0)')
    .option(
      '-l <size>',
      'bytes of a packet without CRC (default: 60); given twice: random, from the second to below the first',
      collect,
    )
    .option('-b <burst>', 'most packets at a time (default: 512; ping and pong 1)')
    .option('-s <source>', 'source address and port, or range: IP[:PORT[-IP:PORT]] (default: 10.0.0.1:1234)')
    .option('-d <destination>', 'destination address and port, or range, likewise (default: 10.1.0.1:1234)')
    .option('-S <mac>', "source Ethernet address (default: the port's)")
    .option('-D <mac>', 'destination Ethernet address (default: ff:ff:ff:ff:ff:ff)')
    .option('-R <rate>', 'packets a second (default: as many as possible)')
    .option('-T <ms>', 'milliseconds between reports (default: 1000)')
    .option('-w <seconds>', 'wait before starting (default: 0)')
    .option('-W', 'rx: end after one second without packets, once some have come')
    .option('-X', 'dump the packets sent and received')
    .option('-F <frags>', 'slots of a packet (NS_MOREFRAG), 1 to 63')
    .option('-M <bytes>', "with -F: most bytes of a slot (default: the buffer's size)")
    .option('-C <shape>', 'slots and rings of the port: TX_SLOTS[,RX_SLOTS[,TX_RINGS[,RX_RINGS]]]')
    .option('-4', 'IPv4 addresses (the default)')
    .option('-6', 'IPv6 addresses')
    .option('-z', 'tx: random source addresses and ports')
    .option('-Z', 'tx: random destination addresses and ports')
    .option('-P <file>', 'tx: send the first packet of a capture, pcap or pcapng; - is stdin')
    .option('-r', 'tx: send what is in the buffers, without writing packets')
    .option('-H <bytes>', 'an empty VirtIO network header in front of each packet: 0 or 12 (default: 0)')
    .option('-I', 'indirect buffers: refused')
    .option('-o <bits>', 'options as a number: 4 or 8 copy always, 64 -X, 256 -r, 512 -z, 1024 -Z, 2048 -A', collect)
    .option('-p <threads>', 'threads, each on one pair of rings (default: 1, for all rings)')
    .option('-a <cpu>', 'pin the first thread to a CPU, more threads to the next ones')
    .option('-c <cpus>', 'with -a: how many CPUs to use (default: 0, all from that one on)')
    .option('-A', 'mean and standard deviation of the rate in each report')
    .option('-N', 'do not shorten numbers to K, M, G')
    .option('-B', 'count CRC and framing (24 bytes a packet) in the bandwidth')
    .option('-v', 'say more')
    .option('--json', 'print the result as one JSON object instead of the summary')
    .action((flags: PktGenFlags & CommonFlags) => pktGen(flags));
}

const log = (text: string): void => void process.stderr.write(text);

async function pktGen(flags: PktGenFlags & CommonFlags): Promise<void> {
  const job = parseJob(flags);
  if (job.threads > 1) return pktGenThreads(job, flags.runDir);
  if (job.cpu >= 0) pinThread(job.cpu);
  const port = await openPort(job.port, {
    ...job.rings,
    vnetHdr: job.vnetHdrLen > 0,
    ...(flags.runDir === undefined ? {} : { runDir: flags.runDir }),
  });
  let outcome: Outcome;
  const run = new Run(job, log);
  // The second signal ends the process at once: the handlers are gone then.
  const cancel = (): void => {
    run.cancelled = true;
    process.off('SIGINT', cancel).off('SIGTERM', cancel);
  };
  process.on('SIGINT', cancel).on('SIGTERM', cancel);
  try {
    if (port.vnetHdrLen !== job.vnetHdrLen) {
      throw new SysError(`-H ${job.vnetHdrLen}: port ${job.port} grants ${port.vnetHdrLen} bytes`, errno.ENOTSUP);
    }
    introduce(job, port, job.json ? log : (text) => void process.stdout.write(text));
    await waitSeconds(job.waitSeconds, run);
    outcome = await runWhilePossible(port, run);
  } finally {
    process.off('SIGINT', cancel).off('SIGTERM', cancel);
    await port.close();
  }
  tell(job, outcome);
}

/** Prints what was counted. @throws what ended the run early */
function tell(job: Job, { result, error }: Outcome): void {
  if (result !== undefined) process.stdout.write(job.json ? `${JSON.stringify(result)}\n` : summary(job, result));
  if (error !== undefined) throw error;
}

async function pktGenThreads(job: Job, runDir: string | undefined): Promise<void> {
  using cancel = new Cancel();
  const { threads } = job;
  const rings = { ...job.rings, txRings: job.rings.txRings ?? threads, rxRings: job.rings.rxRings ?? threads };
  const opened = async (): Promise<void> => {
    const print = job.json ? log : (text: string) => void process.stdout.write(text);
    const doing = job.func === 'tx' ? 'Sending on' : 'Receiving from';
    print(`${doing} ${job.port}: ${threads} queues, ${threads} threads and ${job.cpus || threads} cpus.\n`);
    await waitSeconds(job.waitSeconds, cancel);
  };
  tell(job, await runThreads({ ...job, rings }, runDir, log, opened, cancel));
}

/** The first packet of a capture. */
function packetOf(file: string): Uint8Array {
  const reader = new CaptureReader(file);
  try {
    if (!reader.next()) throw new CaptureError(`${file} has no packets`);
    return reader.data.slice();
  } finally {
    reader.close();
  }
}

/** Runs a job on a port to its end; when the port goes before, tx and rx have a result all the same. */
export async function runWhilePossible(port: PktPort, run: Run): Promise<Outcome> {
  const { job, counters } = run;
  try {
    return { result: await runJob(port, run) };
  } catch (error) {
    if (counters.pkts === 0 || !/^[rt]x/.test(job.func)) return { error };
    if (job.func.startsWith('tx')) counters.end = performance.now();
    return { result: makeResult(job, port.mac, counters), error };
  }
}

/** Runs a job on a port to its end. */
export async function runJob(port: PktPort, run: Run): Promise<PktGenResult> {
  const { job, counters } = run;
  const makeFrame = (): Frame =>
    new Frame({
      size: job.size,
      srcMac: job.srcMac ?? port.mac.split(':').map((b) => Number.parseInt(b, 16)),
      dstMac: job.dstMac,
      src: job.src,
      dst: job.dst,
      udpChecksum: job.func !== 'ping', // its payload changes in the buffer
      randomSrc: job.randomSrc,
      randomDst: job.randomDst,
      vnetHdrLen: job.vnetHdrLen,
      sequence: job.func === 'txseq',
    });
  switch (job.func) {
    case 'tx':
    case 'txseq': {
      const { packetFile, vnetHdrLen } = job;
      const packet: Packet = packetFile === undefined ? makeFrame() : new RawPacket(packetOf(packetFile), vnetHdrLen);
      await txLoop(port, run, packet);
      return makeResult(job, port.mac, counters);
    }
    case 'rx':
      await rxLoop(port, run);
      return makeResult(job, port.mac, counters);
    case 'rxseq':
      counters.sequence = new SequenceCheck(port.rxRings.length, job.vnetHdrLen, run.log);
      await rxLoop(port, run, counters.sequence);
      return makeResult(job, port.mac, counters);
    case 'ping':
      return makeResult(job, port.mac, counters, await pingLoop(port, run, makeFrame()));
    case 'pong':
      await pongLoop(port, run);
      return makeResult(job, port.mac, counters);
  }
}

/** pkt-gen's first lines. */
function introduce(job: Job, port: PktPort, print: (text: string) => void): void {
  const sends = job.func.startsWith('tx');
  const doing = sends ? 'Sending on' : job.func.startsWith('rx') ? 'Receiving from' : 'Working on';
  const queues = (sends ? port.txRings : port.rxRings).length;
  print(`${doing} ${job.port}: ${queues} queues, 1 threads and 1 cpus.\n`);
  if (job.verbose) {
    for (const [dir, rings] of [
      ['TX', port.txRings],
      ['RX', port.rxRings],
    ] as const) {
      for (const ring of rings)
        print(`   ${dir}${ring.ringId} slots ${ring.numSlots} buffers of ${port.bufSize} bytes\n`);
    }
    print(`   mac ${port.mac} burst ${job.burst} rate ${job.rate}\n`);
  }
}
