/**
 * A hostile guest against a whole device, in this process: any registers, any memory shared or taken away, any words in
 * the CSB, the rings and the netmap_if, in any order, between turns of the loop and (second test) while another thread
 * writes all of it without pause. Two honest guests on the same switch exchange a frame in every turn, and lose none; nothing
 * traps, and no descriptor stays open. What once failed is kept in corpus/device.json and runs first.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import * as fc from 'fast-check';
import { PTNET_IO } from '../../src/abi/index.ts';
import { closeFd, eventfd, memfd } from '../../src/os/index.ts';
import { VfioUserError } from '../../src/vfio-user/index.ts';
import {
  type DeviceRig,
  openFds,
  RawGuest,
  type RigPort,
  SharedFile,
  SharedRing,
  withRig,
} from '../unit/device/rig.ts';

const long = process.env['PTNET_LONG'] === '1';
const RUNS = long ? 20_000 : 300;
const FLIP_TURNS = long ? 200_000 : 5_000;

type Step = readonly [op: string, ...args: number[]];
const corpusFile = new URL('../../../tests/fuzz/corpus/device.json', import.meta.url);
const corpus = JSON.parse(readFileSync(corpusFile, 'utf8')) as Step[][];

const u32 = fc.oneof(
  fc.constantFrom(0, 1, 2, 31, 32, 33, 0x7fffffff, 0x80000000, 0xffffffff, 0xffffffff - 31),
  fc.nat(64),
  fc.integer({ min: 0, max: 0xffffffff }),
);
const registers = [...Object.values(PTNET_IO).filter((ofs) => ofs !== PTNET_IO.END), 132, 136, 252];
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 3, arbitrary: fc.constant(['start'] as const) },
  { weight: 3, arbitrary: fc.tuple(fc.constant('reg'), fc.constantFrom(...registers), u32) },
  { weight: 2, arbitrary: fc.tuple(fc.constant('cfg'), fc.nat(252), u32) },
  { weight: 2, arbitrary: fc.tuple(fc.constant('map'), fc.nat(300), fc.nat(20), fc.nat(20)) },
  { weight: 2, arbitrary: fc.tuple(fc.constant('unmap'), fc.nat(300), fc.nat(300)) },
  { weight: 1, arbitrary: fc.tuple(fc.constant('irq'), fc.nat(4), fc.nat(4), fc.nat(2)) },
  { weight: 8, arbitrary: fc.tuple(fc.constant('csb'), fc.nat(1), fc.nat(1), fc.nat(4), u32) },
  { weight: 6, arbitrary: fc.tuple(fc.constant('slot'), fc.nat(1), fc.nat(31), u32, u32) },
  { weight: 4, arbitrary: fc.tuple(fc.constant('word'), fc.nat(20_000), u32) },
  { weight: 1, arbitrary: fc.constant(['reset'] as const) },
  { weight: 1, arbitrary: fc.constant(['bye'] as const) },
  { weight: 2, arbitrary: fc.tuple(fc.constant('ptctl'), fc.constantFrom(1, 2)) },
);

/** Two guests that exchange a broadcast frame a turn, and count. */
class Honest {
  readonly #rig: DeviceRig;
  readonly #tx: SharedRing;
  readonly #rx: SharedRing;
  readonly #sender: RawGuest;
  readonly #receiver: RawGuest;
  #sent = 0;
  #read = 0;
  #received = 0;

  private constructor(rig: DeviceRig, a: RigPort, b: RigPort, sender: RawGuest, receiver: RawGuest) {
    this.#rig = rig;
    this.#sender = sender;
    this.#receiver = receiver;
    this.#tx = new SharedRing(a.region, a.registration, a.registration.txRings[0]!);
    this.#rx = new SharedRing(b.region, b.registration, b.registration.rxRings[0]!);
  }

  static async of(rig: DeviceRig): Promise<Honest> {
    const ports = [rig.addPort(), rig.addPort({ shape: { rxSlots: 256 } })] as const;
    const [a, b] = [new RawGuest(await rig.connect(ports[0].device)), new RawGuest(await rig.connect(ports[1].device))];
    await a.start();
    await b.start();
    return new Honest(rig, ports[0], ports[1], a, b);
  }

  /** One turn: a frame out, a frame in. */
  turn(): void {
    const frame = Buffer.alloc(64, 255);
    frame.writeUInt32LE(0xfeedf00d, 16);
    frame.writeUInt32LE(this.#sent, 20);
    this.#tx.put(this.#sent % 32, frame);
    this.#sent++;
    this.#sender.setHead(0, this.#sent % 32);
    this.#rig.kloop.turn();
    assert.deepEqual(this.#rig.traps, []);
    for (const tail = this.#receiver.hwtail(1); this.#read !== tail; this.#read = (this.#read + 1) % 256) {
      const got = this.#rx.get(this.#read);
      if (got.length !== 64 || got.readUInt32LE(16) !== 0xfeedf00d) continue;
      // The hostile guest, who receives broadcasts too, may point a slot at an old one and send it again.
      if (got.readUInt32LE(20) < this.#received) continue;
      assert.equal(got.readUInt32LE(20), this.#received, 'in order');
      this.#received++;
    }
    this.#receiver.setHead(1, this.#read);
    assert.equal(this.#received, this.#sent, 'none is lost');
  }

  close(): void {
    this.#sender.memory.close();
    this.#receiver.memory.close();
  }
}

class Hostile {
  readonly port: RigPort;
  readonly #rig: DeviceRig;
  readonly #rings: SharedRing[];
  readonly region: SharedFile;
  guest: RawGuest;

  private constructor(rig: DeviceRig, port: RigPort, guest: RawGuest) {
    this.#rig = rig;
    this.port = port;
    this.guest = guest;
    const { region, registration } = port;
    this.#rings = [...registration.txRings, ...registration.rxRings].map(
      (r) => new SharedRing(region, registration, r),
    );
    this.region = new SharedFile(region.fd, region.layout.size);
  }

  static async of(rig: DeviceRig): Promise<Hostile> {
    const port = rig.addPort({ vnetHdr: true, config: { maxDmaMaps: 16 } });
    return new Hostile(rig, port, new RawGuest(await rig.connect(port.device)));
  }

  /** Carries a step out; what the device refuses is refused. */
  async step([op, ...args]: Step): Promise<void> {
    try {
      await this.#step(op, args as [number, number, number, number]);
    } catch (e) {
      if (!(e instanceof VfioUserError) || e.errno === 104) throw e;
    }
  }

  async #step(op: string, [a, b, c, d]: [number, number, number, number]): Promise<void> {
    const { guest } = this;
    switch (op) {
      case 'start':
        await guest.client.dmaUnmap({ iova: 0n, size: 0n, all: true });
        await guest.start();
        return;
      case 'reg':
        return guest.write(a, b);
      case 'cfg':
        return guest.client.regionWrite(7, a, Uint8Array.of(b, b >>> 8, b >>> 16, b >>> 24));
      case 'map':
        return guest.client.dmaMap({
          iova: BigInt(a) * 4096n,
          size: BigInt(b + 1) * 2048n,
          fd: guest.memory.fd,
          offset: BigInt(c) * 2048n,
          flags: 3,
        });
      case 'unmap':
        return guest.client.dmaUnmap({ iova: BigInt(a) * 4096n, size: BigInt(b + 1) * 4096n });
      case 'irq': {
        const fds = Array.from({ length: b }, () => (c === 0 ? memfd('no eventfd', 4096) : eventfd()));
        await guest.client.setIrqs({ index: 2, start: a, fds, count: b }).finally(() => fds.forEach(closeFd));
        return;
      }
      case 'csb':
        return guest.memory.setU32((a === 0 ? guest.atok(b) : guest.ktoa(b)) + 4 * c, d);
      case 'slot':
        this.#rings[a]!.setBufIdx(b, c);
        return this.#rings[a]!.setLenFlags(b, d & 0xffff, d >>> 16);
      case 'word':
        return this.region.setU32((4 * a) % this.region.bytes, b);
      case 'reset':
        return guest.client.reset();
      case 'ptctl':
        return void (await guest.control(a));
      case 'bye':
        guest.client.close();
        guest.memory.close();
        await this.#rig.left(this.port.device);
        this.guest = new RawGuest(await this.#rig.connect(this.port.device));
        return;
      default:
        throw new Error(`no step ${op}`);
    }
  }
}

async function session(steps: readonly Step[]): Promise<void> {
  const before = openFds();
  await withRig(async (rig) => {
    const honest = await Honest.of(rig);
    const hostile = await Hostile.of(rig);
    for (const s of steps) {
      await hostile.step(s);
      honest.turn();
    }
    // It can still behave.
    await hostile.guest.client.reset();
    await hostile.step(['start']);
    assert.equal(hostile.port.device.state.running, true);
    honest.turn();
    honest.close();
    hostile.guest.memory.close();
  });
  assert.equal(openFds(), before, 'descriptors');
}

test('a hostile guest, step by step: what once failed', async () => {
  for (const steps of corpus) await session(steps);
});

test('R7, R18, R19: a hostile guest, step by step', { timeout: 3_600_000 }, () =>
  fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 60 }), session), { numRuns: RUNS }),
);

test('R5: a guest whose other processors write CSB, rings and slots without pause', { timeout: 3_600_000 }, () =>
  withRig(async (rig) => {
    const honest = await Honest.of(rig);
    const hostile = await Hostile.of(rig);
    await hostile.step(['start']);
    const { layout, fd } = hostile.port.region;
    const flipper = new Worker(new URL('./flipper.js', import.meta.url), {
      workerData: { csb: hostile.guest.memory.fd, region: fd, header: layout.bufPool.ofs },
    });
    await new Promise((resolve) => flipper.once('message', resolve));
    try {
      for (let i = 0; i < FLIP_TURNS; i++) {
        honest.turn();
        if (i % 64 === 0) {
          // It stops and starts all the same.
          await hostile.step(['ptctl', 2]);
          hostile.guest.prepare();
          await hostile.step(['ptctl', 1]);
        }
      }
    } finally {
      await flipper.terminate();
    }
    await hostile.guest.client.reset();
    await hostile.step(['start']);
    assert.equal(hostile.port.device.state.running, true);
    honest.turn();
  }),
);
