/** What tests of zero-copy monitors of interfaces have in common: regions, and whether every buffer is in its place. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { listDaemon, type NetmapPort, openPort } from '../../src/api/index.ts';
import { FrameCounter } from './nic-frames.ts';
import type { NicLab } from './nic-lab.ts';
import { QUIET_MS, receive } from './nic-traffic.ts';

export const FEW = 1000;
/** Rings with room for all that passes, both ways. */
export const ROOM = '@conf:rx-slots=4096';
export const regions = {
  lab: { buffers: 32768 },
  // No AF_XDP with buffers of this size.
  large: { buffers: 32768, bufSize: 4096 },
};
const MARK = 0xa5;
const MARK_BYTES = 60;
export type RegionName = keyof typeof regions;

/** Buffers of a port's rings, of rx rings those that its user has, or all of a ring's slots. */
export function buffers({ txRings, rxRings }: NetmapPort, all: boolean): number[] {
  const tx = txRings.flatMap((ring) => Array.from({ length: ring.numSlots }, (_, i) => ring.bufIdx(i)));
  const rx = rxRings.flatMap((ring) =>
    Array.from({ length: all ? ring.numSlots : ring.space() }, (_, i) => ring.bufIdx((ring.head + i) % ring.numSlots)),
  );
  return [...tx, ...rx];
}

export function eachOnce(indexes: readonly number[]): void {
  assert.equal(new Set(indexes).size, indexes.length, 'no buffer in two hands');
}

/** A monitor shows that many frames, none of them touched. @param skip bytes of the VirtIO header in front of them */
export async function shows(monitor: NetmapPort, frames: number, skip = 0): Promise<void> {
  const counter = new FrameCounter();
  await receive(monitor, counter, frames, { skip });
  assert.deepEqual([counter.frames, counter.wrong], [frames, 0]);
}

/** Keeps a region there, and sees that what is opened in it gives everything back. */
export class Keeper {
  readonly #free: () => Promise<number | undefined>;
  readonly #least: number;
  readonly #port: NetmapPort;

  private constructor(port: NetmapPort, least: number, free: () => Promise<number | undefined>) {
    this.#port = port;
    this.#least = least;
    this.#free = free;
  }

  static async of(lab: NicLab, region: RegionName): Promise<Keeper> {
    const port = await openPort(`vale9:keeper@${region}`, { runDir: lab.runDir });
    const free = async (): Promise<number | undefined> =>
      (await listDaemon(lab.runDir)).regions.find((r) => r.name === `@${region}`)?.freeBuffers;
    return new Keeper(port, (await free())!, free);
  }

  /** Waits until everything is free again but what the keeper has. */
  async settled(): Promise<void> {
    for (const end = performance.now() + QUIET_MS; (await this.#free()) !== this.#least; await sleep(10)) {
      assert.ok(performance.now() < end, `${await this.#free()} buffers are free, ${this.#least} were`);
    }
  }

  async end(): Promise<void> {
    await this.settled();
    await this.#port.close();
  }
}

/** Buffers that one process has, marked: nobody else may have them, or write there. */
export class Marked {
  readonly indexes: readonly number[];
  readonly #port: NetmapPort;

  /** All buffers of a port's rings, and its extra ones. */
  constructor(port: NetmapPort) {
    this.#port = port;
    this.indexes = [...buffers(port, true), ...port.extraBufs];
    eachOnce(this.indexes);
    for (const idx of this.indexes) this.#bytes(idx).fill(MARK);
  }

  /** Everything that is free in a region. */
  static async rest(lab: NicLab, region: RegionName): Promise<Marked> {
    const extraBufs = regions[region].buffers;
    return new Marked(await openPort(`vale9:rest@${region}`, { runDir: lab.runDir, extraBufs }));
  }

  #bytes(idx: number): Uint8Array {
    const at = this.#port.bufOfs(idx);
    return this.#port.m.u8.subarray(at, at + MARK_BYTES);
  }

  /** Closes the port. */
  async end(): Promise<void> {
    const touched = this.indexes.filter((idx) => this.#bytes(idx).some((byte) => byte !== MARK));
    assert.deepEqual(touched, [], 'nobody else writes there');
    await this.#port.close();
  }
}

/** Starts monitors as processes, two in a chain, and kills them, either first, until `signal`, thrice at least. */
export async function killingMonitors(lab: NicLab, name: string, signal: AbortSignal): Promise<void> {
  for (let killed = 0; !signal.aborted || killed < 3; killed++) {
    const monitors = [0, 1].map(() => lab.here.ptnet('pkt-gen', '-i', name, '-f', 'rx', '--run-dir', lab.runDir));
    const running = async (): Promise<number> =>
      (await lab.ports()).filter((p) => p.name.includes('/z') && p.running).length;
    while ((await running()) < 2) await sleep(10);
    await sleep(50);
    for (const monitor of killed % 2 === 0 ? monitors : monitors.toReversed()) {
      monitor.kill('SIGKILL');
      await sleep(20);
    }
    while ((await lab.ports()).some((p) => p.name.includes('/z'))) await sleep(10);
  }
}
