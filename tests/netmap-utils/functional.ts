/**
 * What netmap's utils/functional does, on ports of a daemon in this process: sends and receives frames of a given length
 * and letter. A frame's first bytes are Ethernet addresses and type.
 */
import assert from 'node:assert/strict';
import { type NetmapPort, NS_BUF_CHANGED, NS_MOREFRAG, NS_TXMON, POLLIN, valeCtl } from '../../src/api/index.ts';
import { Lab } from '../unit/host-ports/support.ts';

export { Lab } from '../unit/host-ports/support.ts';

export interface Frames {
  readonly len: number;
  readonly fill: string;
  readonly num: number;
  /** Ethernet addresses; by default from 02:…:99 to all. */
  readonly src?: string;
  readonly dst?: string;
}

const bytesOf = (mac: string): number[] => mac.split(':').map((b) => Number.parseInt(b, 16));

/** Frame i of a series: its letter goes on from the first (netmap's -q). */
export function frame(
  { len, fill, src = '02:00:00:00:00:99', dst = 'ff:ff:ff:ff:ff:ff' }: Frames,
  i: number,
): Uint8Array {
  const bytes = new Uint8Array(len).fill(fill.charCodeAt(0) + (i % 26));
  bytes.set([...bytesOf(dst), ...bytesOf(src), 0x10, 0x00]);
  return bytes;
}

/** Sends all of them; false if they do not fit the ring. With extra buffers, these are what is sent. */
export function send(port: NetmapPort, frames: Frames): boolean {
  const ring = port.txRings[0]!;
  const extra = [...port.extraBufs];
  const pieces = Math.ceil(frames.len / port.bufSize);
  port.txsync();
  if (ring.space() < frames.num * pieces) return false;
  for (let i = 0; i < frames.num; i++) {
    const bytes = frame(frames, i);
    for (let at = 0; at < bytes.length; at += port.bufSize) {
      const part = bytes.subarray(at, at + port.bufSize);
      const idx = extra.shift();
      if (idx !== undefined) ring.setBufIdx(ring.head, idx);
      port.m.u8.set(part, ring.bufOfs(ring.head));
      ring.setLen(ring.head, part.length);
      const more = at + part.length < bytes.length ? NS_MOREFRAG : 0;
      ring.setFlags(ring.head, (idx === undefined ? 0 : NS_BUF_CHANGED) | more);
      ring.head = ring.cur = ring.next(ring.head);
    }
  }
  port.txsync();
  return true;
}

/** Receives frames, which are to be these, in order. @param direction 'tx': they bear NS_TXMON, 'rx': they do not */
export function receive(port: NetmapPort, frames: Frames, direction: 'tx' | 'rx' = 'rx'): void {
  const ring = port.rxRings[0]!;
  for (let i = 0; i < frames.num; i++) {
    const parts: number[] = [];
    assert.equal(port.poll(POLLIN, 5000), POLLIN, `${port.name}: ${i} of ${frames.num} frames came`);
    let slot = ring.head;
    for (let more = NS_MOREFRAG; more !== 0; slot = ring.next(slot)) {
      assert.notEqual(slot, ring.tail, 'a whole packet (R6)');
      const at = ring.bufOfs(slot);
      parts.push(...port.m.u8.slice(at, at + ring.len(slot)));
      more = ring.flags(slot) & NS_MOREFRAG;
      assert.equal((ring.flags(slot) & NS_TXMON) !== 0, direction === 'tx', 'NS_TXMON');
    }
    ring.head = ring.cur = slot;
    assert.deepEqual(Uint8Array.from(parts), frame(frames, i), `${port.name}: frame ${i}`);
  }
  port.rxsync();
}

/** Nothing comes. */
export function receiveNothing(port: NetmapPort): void {
  assert.equal(port.poll(POLLIN, 100), 0, `${port.name} got something`);
}

/** Runs a scenario on a daemon of its own. */
export async function withLab(body: (lab: Lab, ctl: Ctl) => Promise<void>): Promise<void> {
  const lab = await Lab.start();
  try {
    await body(lab, new Ctl(lab.runDir));
    await lab.closeAll();
    await lab.until(
      (domains, regions) =>
        domains.every((d) => d.ports.every((p) => 'nobody' in p.owner)) &&
        regions.every((r) => r.freeBuffers + 2 + used(domains, r.name) === r.buffers),
    );
  } finally {
    await lab.stop();
  }
}

/** Buffers that ports nobody has open (persistent ones) have in a region. */
function used(domains: Parameters<Parameters<Lab['until']>[0]>[0], region: string): number {
  return domains
    .flatMap((d) => d.ports)
    .filter((p) => p.region === region)
    .flatMap((p) => [...p.txRings, ...p.rxRings])
    .reduce((sum, r) => sum + r.slots, 0);
}

/** vale-ctl. */
export class Ctl {
  readonly #runDir: string;
  constructor(runDir: string) {
    this.#runDir = runDir;
  }
  async create(name: string, memId?: string): Promise<void> {
    await valeCtl({ letter: 'n', name, ...(memId === undefined ? {} : { memId }) }, this.#runDir);
  }
  async destroy(name: string): Promise<void> {
    await valeCtl({ letter: 'r', name }, this.#runDir);
  }
  async attach(name: string): Promise<void> {
    await valeCtl({ letter: 'a', name }, this.#runDir);
  }
  async detach(name: string): Promise<void> {
    await valeCtl({ letter: 'd', name }, this.#runDir);
  }
}
