/** Numbered frames through a port and the peer at the other end of its wire: none may be missing. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { NS_MOREFRAG } from '../../src/abi/index.ts';
import type { NetmapPort } from '../../src/api/index.ts';
import { POLLIN, POLLOUT } from '../../src/api/index.ts';
import { FrameCounter, writeFrame } from './nic-frames.ts';
import type { NicLab, Peer } from './nic-lab.ts';

export const long = process.env['PTNET_LONG'] === '1';
export const FRAMES = long ? 100_000 : 10_000;
/**
 * Frames on their way, at most: fewer than the shortest queue on it has room for (veth: 256), so that however slow a busy
 * machine's processes are, none is lost. That is the pace.
 */
export const WINDOW = 128;
/** Longest time in which nothing arrives, ms: only what is lost takes so long. */
export const QUIET_MS = 30_000;

/** Takes frames, pieces put together, until `frames` of ours are there or nothing comes for a while. @param skip bytes of a header */
export async function receive(
  port: NetmapPort,
  counter: FrameCounter,
  frames: number,
  { sender, quietMs = QUIET_MS, skip = 0 }: { sender?: Peer; quietMs?: number; skip?: number } = {},
): Promise<void> {
  const whole = new Uint8Array(65536);
  while (counter.frames < frames) {
    if ((await port.wait(POLLIN, { timeoutMs: quietMs })) === 0) return;
    for (const ring of port.rxRings) {
      let length = 0;
      while (ring.space() > 0) {
        const i = ring.head;
        const ofs = ring.bufOfs(i);
        whole.set(port.m.u8.subarray(ofs, ofs + ring.len(i)), length);
        length += ring.len(i);
        if ((ring.flags(i) & NS_MOREFRAG) === 0) {
          counter.add(whole.subarray(skip), length - skip);
          length = 0;
        }
        ring.head = ring.cur = ring.next(i);
      }
    }
    port.rxsync();
    sender?.arrived(counter.frames);
  }
}

/** Sends numbered frames, at most WINDOW more than the receiver has; every slot comes back. @param ring of the port (default: the first) */
export async function send(
  port: NetmapPort,
  count: number,
  bytes: number,
  { receiver, vlan, ring: which = 0 }: { receiver?: Peer; vlan?: number; ring?: number } = {},
): Promise<void> {
  const ring = port.txRings[which]!;
  const whole = new Uint8Array(65536);
  const pieces = Math.ceil(bytes / port.bufSize);
  for (let n = 0; n < count; ) {
    const due = receiver === undefined ? count : Math.min(count, receiver.frames + WINDOW);
    while (n < due && ring.space() >= pieces) {
      writeFrame(whole, bytes, n++, vlan);
      for (let at = 0; at < bytes; at += port.bufSize) {
        const i = ring.head;
        const part = whole.subarray(at, Math.min(bytes, at + port.bufSize));
        port.m.u8.set(part, ring.bufOfs(i));
        ring.setLen(i, part.length);
        ring.setFlags(i, at + port.bufSize < bytes ? NS_MOREFRAG : 0);
        ring.head = ring.cur = ring.next(i);
      }
    }
    port.txsync();
    if (ring.space() < pieces) await port.wait(POLLOUT, { timeoutMs: 1000 });
    else if (receiver !== undefined && n === due) await arrival(receiver, n - WINDOW + 1);
  }
  if (receiver !== undefined) await arrival(receiver, count);
  for (const end = performance.now() + QUIET_MS; ring.space() < ring.numSlots - 1 && performance.now() < end; ) {
    await sleep(5);
    port.txsync();
  }
  assert.equal(ring.space(), ring.numSlots - 1, 'every slot comes back');
}

/** Waits until a receiver has that many frames, or has got none for a while. */
export async function arrival(receiver: Peer, frames: number): Promise<void> {
  let last = receiver.frames;
  for (let since = performance.now(); receiver.frames < frames && performance.now() - since < QUIET_MS; ) {
    await receiver.change();
    if (receiver.frames === last) continue;
    last = receiver.frames;
    since = performance.now();
  }
}

/** Numbered frames both ways: all arrive, in order, whole. @param far where the other end of the wire is @param ring sends */
export async function conserves(
  lab: NicLab,
  port: NetmapPort,
  bytes: number,
  {
    vlan,
    frames = FRAMES,
    far = 'veth1',
    ring = 0,
  }: { vlan?: number; frames?: number; far?: string; ring?: number } = {},
): Promise<void> {
  const tag = vlan === undefined ? [] : [String(vlan)];
  const counter = new FrameCounter(vlan);
  const where = far === 'veth1' ? lab.there : lab.here;
  const sender = await where.peer('send', far, String(frames), String(bytes), String(WINDOW), ...tag).ready();
  await receive(port, counter, frames, { sender });
  const arrived = { frames: counter.frames, disorder: counter.disorder, wrong: counter.wrong, bytes: counter.bytes };
  const lost =
    counter.frames === frames ? '' : `; lost on the wire: ${lab.lost()}; ${JSON.stringify(await lab.ports())}`;
  assert.deepEqual(arrived, { frames, disorder: 0, wrong: 0, bytes: frames * bytes }, `received${lost}`);
  await sender.result();
  const receiver = await where.peer('receive', far, ...tag).ready();
  await send(port, frames, bytes, { receiver, ring, ...(vlan === undefined ? {} : { vlan }) });
  assert.deepEqual(await receiver.result('SIGINT'), { frames, disorder: 0, wrong: 0, bytes: frames * bytes }, 'sent');
}
