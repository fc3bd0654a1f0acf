/** `ptnet bridge`: netmap's bridge on two ports of the daemon. docs/bridge.md describes it. */
import { setImmediate } from 'node:timers/promises';
import type { Command } from 'commander';
import { type NetmapPort, openPort, POLLIN, POLLOUT, PortSet } from '../../api/index.ts';
import { Moved, portsMove } from '../bridge/move.ts';
import { type BridgeFlags, type BridgeJob, parseBridge } from '../bridge/options.ts';
import { type CommonFlags, collect, command } from '../command.ts';
import { leavesRegionOpen, regionOf } from '../regions.ts';
import { Cancel, waitSeconds } from '../signals.ts';

/** Longest time in poll(2) without a look at signals. */
const POLL_MS = 100;
/** The same while there is work. */
const BREATH_MS = 10;

export function bridgeCommand(): Command {
  return command('bridge', 'pass packets between two ports, both ways', [
    ['ptnet bridge -i vale0:x -i vale1:x', 'join two switches'],
    ['ptnet bridge -i netmap:eth1', "a network card and the host's own network stack at it"],
    ['ptnet bridge -L -i vale0:echo', 'send back what arrives'],
  ])
    .argument('[ifa]', 'instead of the first -i')
    .argument('[ifb]', 'instead of the second -i')
    .argument('[burst]', 'instead of -b')
    .option('-i <port>', "a port to join; twice (a single interface is joined with the host's stack)", collect)
    .option('-b <burst>', 'most slots to pass on at a time (default: 1024)')
    .option('-w <seconds>', 'wait before starting (default: 0)')
    .option('-c', 'always copy, also between ports in one memory region')
    .option('-L', 'with one port: send what it receives back to it')
    .option('-v', 'say what is passed on, each second')
    .action((ifa: string | undefined, ifb: string | undefined, burst: string | undefined, flags) =>
      bridge(
        flags as BridgeFlags & CommonFlags,
        [ifa, ifb, burst].filter((w) => w !== undefined),
      ),
    );
}

const log = (text: string): void => void process.stderr.write(`${text}\n`);

async function bridge(flags: BridgeFlags & CommonFlags, words: readonly string[]): Promise<void> {
  const job = parseBridge(flags, words);
  using cancel = new Cancel();
  const [a, b] = await openBoth(job, flags.runDir);
  try {
    const zeroCopy = job.zeroCopy && a.memId === b.memId;
    if (!zeroCopy) {
      checkSizes(a, b);
      checkSizes(b, a);
    }
    log(zeroCopy ? 'zero copy' : `copying: ${job.zeroCopy ? 'the ports lie in two memory regions' : '-c'}`);
    if (job.waitSeconds > 0) {
      log(`waiting ${job.waitSeconds} s`);
      await waitSeconds(job.waitSeconds, cancel);
    }
    log(`${job.a} ${a.rxRings.length} rx rings ${job.loopback ? 'back to itself' : `<-> ${job.b}`}`);
    const [ab, ba] = [new Moved(), new Moved()];
    try {
      await bridgeLoop(job, a, b, zeroCopy, cancel, ab, ba);
    } finally {
      // Also when a port is gone.
      process.stdout.write(totalText(job.a, job.b, ab));
      if (!job.loopback) process.stdout.write(totalText(job.b, job.a, ba));
    }
  } finally {
    await a.close();
    if (b !== a) await b.close();
  }
}

/** Opens both ports, in one region if that can be, for which one is made unless a name says one. */
async function openBoth(job: BridgeJob, runDir: string | undefined): Promise<[NetmapPort, NetmapPort]> {
  const options = runDir === undefined ? {} : { runDir };
  if (job.loopback) {
    const port = await openPort(job.a, options);
    return [port, port];
  }
  const region = regionOf(job.a) ?? regionOf(job.b) ?? `@bridge${process.pid}`;
  const open = async (name: string): Promise<NetmapPort> => {
    if (job.zeroCopy && leavesRegionOpen(name)) {
      try {
        return await openPort(name + region, options);
      } catch {
        // It lies elsewhere already, or there is no room or permission for that region: wherever it likes, then.
      }
    }
    return openPort(name, options);
  };
  const a = await open(job.a);
  try {
    return [a, await open(job.b)];
  } catch (e) {
    await a.close();
    throw e;
  }
}

function checkSizes(from: NetmapPort, to: NetmapPort): void {
  if (from.bufSize <= to.bufSize) return;
  const sizes = `the buffers of ${from.name} have ${from.bufSize} bytes, those of ${to.name} only ${to.bufSize}`;
  throw new Error(`${sizes}: packets would not fit; open both with one buffer size`);
}

function totalText(from: string, to: string, moved: Moved): string {
  const bad = moved.bad > 0 ? `, ${moved.bad} bad slots` : '';
  const tooLong = moved.tooLong > 0 ? `, ${moved.tooLong} packets longer than a ring dropped` : '';
  return `${from} --> ${to}: ${moved.packets} packets ${moved.bytes} bytes${bad}${tooLong}\n`;
}

/**
 * Passes packets on until cancelled.
 * @param ab counts what goes from a to b @param ba counts what goes from b to a
 * @throws SysError ENODEV: a port is gone
 */
async function bridgeLoop(
  job: BridgeJob,
  a: NetmapPort,
  b: NetmapPort,
  zeroCopy: boolean,
  cancel: { readonly cancelled: boolean },
  ab: Moved,
  ba: Moved,
): Promise<void> {
  const set = new PortSet(job.loopback ? [a] : [a, b]);
  const { events } = set;
  let breathAt = 0;
  let reportAt = performance.now() + 1000;
  let reported = 0;
  while (!cancel.cancelled) {
    const now = performance.now();
    if (now >= breathAt) {
      await setImmediate();
      breathAt = now + BREATH_MS;
      if (job.verbose && now >= reportAt) {
        log(`${ab.packets + ba.packets - reported} packets`);
        reported = ab.packets + ba.packets;
        reportAt = now + 1000;
      }
    }
    if (job.loopback) {
      events[0] = received(a) ? POLLOUT : POLLIN;
      if (set.poll(POLL_MS) > 0) portsMove(a, a, job.burst, zeroCopy, ab);
      continue;
    }
    const fromA = received(a);
    const fromB = received(b);
    events[0] = (fromA ? 0 : POLLIN) | (fromB ? POLLOUT : 0);
    events[1] = (fromB ? 0 : POLLIN) | (fromA ? POLLOUT : 0);
    if (set.poll(POLL_MS) === 0) continue;
    portsMove(b, a, job.burst, zeroCopy, ba);
    portsMove(a, b, job.burst, zeroCopy, ab);
  }
  set.poll(0);
}

function received(port: NetmapPort): boolean {
  const { rxRings } = port;
  for (let i = 0; i < rxRings.length; i++) if (rxRings[i]!.space() > 0) return true;
  return false;
}
