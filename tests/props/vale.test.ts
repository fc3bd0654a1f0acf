/**
 * VALE against a naive model: any mix of packets, chains, floods, bad slots, full and stopped rings gives the same
 * frames in the same order, the same counters, and no buffer lost or doubled.
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import * as fc from 'fast-check';
import { netmap_slot } from '../../src/abi/index.ts';
import type { RigPort, RigRing } from '../unit/datapath/rig.ts';
import { Rig, STARTS } from '../unit/datapath/rig.ts';
import type { ModelPort } from './vale-model.ts';
import { ModelRx, ModelVale, rthash } from './vale-model.ts';

const BUF_SIZE = 192;
const runs = process.env.PTNET_LONG === '1' ? 3000 : 300;

const bytes = (n: bigint) => Uint8Array.from({ length: 6 }, (_, i) => Number((n >> BigInt(8 * i)) & 255n));
/** Addresses to use: two that share an entry of the table, some others, broadcast, multicast, zero. */
const addresses: Uint8Array[] = (() => {
  const first = 0x02n;
  let other = first + 0x100n;
  while (rthash(other) !== rthash(first)) other += 0x100n;
  return [first, other, 0x0402n, 0x1234_5678_9a02n, 0xffff_ffff_ffffn, 0x0100_0000_0003n, 0n].map(bytes);
})();
const address = fc.nat(addresses.length - 1);

const portShape = fc.record({
  hdr: fc.constantFrom(0, 0, 0, 10, 12),
  txRings: fc.integer({ min: 1, max: 3 }),
  rxRings: fc.integer({ min: 1, max: 2 }),
  rxSlots: fc.constantFrom(4, 16, 100),
});

const packet = fc.record({
  dst: address,
  src: address,
  /** Length of the first slot behind the header (-1: the header alone, -2: half a header), and of the others. */
  first: fc.oneof(
    { weight: 8, arbitrary: fc.integer({ min: 14, max: BUF_SIZE - 12 }) },
    { weight: 1, arbitrary: fc.constantFrom(-1, -2, 0, 13, BUF_SIZE) },
  ),
  rest: fc.oneof(
    { weight: 6, arbitrary: fc.constant([] as number[]) },
    { weight: 3, arbitrary: fc.array(fc.nat(BUF_SIZE), { maxLength: 6 }) },
    { weight: 1, arbitrary: fc.array(fc.constant(20), { minLength: 60, maxLength: 70 }) },
  ),
  tag: fc.nat(255),
  /** First two bytes of the VirtIO header; the others are 0, so that the last one is malformed. */
  offload: fc.constantFrom(0, 0, 0, 1, 2, 0x0101),
  /** Position of a slot to spoil. */
  bad: fc.oneof({ weight: 9, arbitrary: fc.constant(-1) }, { weight: 1, arbitrary: fc.nat(3) }),
});

type Packet = typeof packet extends fc.Arbitrary<infer T> ? T : never;

const step = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      op: fc.constant('send' as const),
      port: fc.nat(4),
      ring: fc.nat(2),
      packets: fc.array(packet),
    }),
  },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('receive' as const), port: fc.nat(4) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('toggle' as const), port: fc.nat(4), ring: fc.nat(1) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('swap' as const), port: fc.nat(4) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('spoil' as const), port: fc.nat(4), at: fc.nat(99) }) },
);

/** The slots of a packet as bytes. */
function build(p: Packet, hdr: number): Uint8Array[] {
  const lengths = [Math.max(0, p.first === -2 ? hdr >> 1 : p.first === -1 ? hdr : Math.min(hdr + p.first, BUF_SIZE))];
  const frags = [...lengths, ...p.rest].map((len, i) => new Uint8Array(len).map((_, k) => (p.tag + i + k * 3) & 255));
  const [first, second] = frags;
  first!.set(
    [p.offload & 255, p.offload >> 8, ...new Uint8Array(Math.max(0, hdr - 2))].slice(0, Math.min(hdr, first!.length)),
  );
  const eth = first!.length > hdr ? first!.subarray(hdr) : second;
  const macs = [...addresses[p.dst]!, ...addresses[p.src]!];
  eth?.set(macs.slice(0, eth.length));
  return frags;
}

/** Everything of the switch twice: real and model. */
class Pair {
  readonly rig: Rig;
  readonly model: ModelVale;
  /** Slots spoilt, and what they held. */
  readonly spoilt = new Map<RigRing, Map<number, number>>();

  constructor(start: number, shapes: { hdr: number; txRings: number; rxRings: number; rxSlots: number }[]) {
    this.rig = new Rig(start);
    const ports: ModelPort[] = shapes.map((s) => {
      const { hdr: vnetHdrLen, ...rings } = s;
      const p = this.rig.addPort({ ...rings, vnetHdrLen, bufSize: BUF_SIZE, txSlots: 128 });
      for (const ring of p.rx) this.spoilt.set(ring, new Map());
      const tx = p.tx.map(() => ({ packets: 0, slots: 0, bytes: 0, copies: 0, drop_bad: 0, drop_nodst: 0 }));
      return { hdr: s.hdr, tx, rx: p.rx.map(() => new ModelRx(s.rxSlots, BUF_SIZE)) };
    });
    this.model = new ModelVale(ports);
  }

  send(at: number, ringAt: number, packets: readonly Packet[]): void {
    const port = at % this.rig.ports.length;
    const rings = this.rig.ports[port]!.tx;
    const ring = rings[ringAt % rings.length]!;
    const { m } = this.rig;
    const undo: (() => void)[] = [];
    for (const p of packets) {
      const frags = build(p, this.model.ports[port]!.hdr);
      if (ring.avail < frags.length) break;
      const slot = ring.slot((ring.head + p.bad) % ring.slots);
      const bad = p.bad >= 0 && p.bad < frags.length;
      ring.putPacket(frags);
      if (bad) {
        const idx = netmap_slot.get.buf_idx(m, slot);
        netmap_slot.set.buf_idx(m, slot, p.tag % 2);
        undo.push(() => netmap_slot.set.buf_idx(m, slot, idx));
      }
      this.model.send(port, ringAt % rings.length, { frags, bad });
    }
    ring.publish();
    this.rig.serve();
    for (const f of undo) f();
    assert.equal(ring.hwcur, ring.head);
  }

  receive(at: number): void {
    const i = at % this.rig.ports.length;
    for (const [k, ring] of this.rig.ports[i]!.rx.entries()) {
      const model = this.model.ports[i]!.rx[k]!;
      if (!model.running) continue;
      assert.equal(ring.avail, model.held);
      const spoilt = this.spoilt.get(ring)!;
      for (let j = ring.head; j !== ring.hwtail; j = ring.next(j)) {
        const idx = spoilt.get(j);
        if (idx === undefined) continue;
        netmap_slot.set.buf_idx(this.rig.m, ring.slot(j), idx);
        spoilt.delete(j);
        model.spoilt.delete(j);
      }
      assert.deepEqual(ring.receive(), model.arrived);
      model.arrived = [];
      model.held = 0;
    }
  }

  toggle(at: number, ringAt: number): void {
    const i = at % this.rig.ports.length;
    const k = ringAt % this.rig.ports[i]!.rx.length;
    const model = this.model.ports[i]!.rx[k]!;
    const { kr } = this.rig.ports[i]!.rx[k]!;
    if (model.running) this.rig.dp.krStop(kr);
    else {
      this.rig.dp.krStart(kr);
      // What it had not released is its own again from hwcur on: as a driver after CREATE.
      this.rig.ports[i]!.rx[k]!.publish();
    }
    model.running = !model.running;
  }

  /** A guest exchanges the buffers of two slots it owns. */
  swap(at: number): void {
    const { m, ports } = this.rig;
    const p = ports[at % ports.length]!;
    const [tx, rx] = [p.tx[0]!, p.rx[0]!];
    if (tx.avail === 0 || rx.avail === 0 || this.spoilt.get(rx)!.has(rx.head)) return;
    const [a, b] = [tx.slot(tx.head), rx.slot(rx.head)];
    const idx = netmap_slot.get.buf_idx(m, a);
    // The frame in the rx slot moves with its buffer: copy it, so that the model need not know.
    m.u8.copyWithin(tx.buf(tx.head), rx.buf(rx.head), rx.buf(rx.head) + BUF_SIZE);
    netmap_slot.set.buf_idx(m, a, netmap_slot.get.buf_idx(m, b));
    netmap_slot.set.buf_idx(m, b, idx);
  }

  /** A guest spoils a slot that is the host's. */
  spoil(at: number, slotAt: number): void {
    const i = at % this.rig.ports.length;
    const ring = this.rig.ports[i]!.rx[0]!;
    const model = this.model.ports[i]!.rx[0]!;
    const free = ring.slots - 1 - model.held;
    if (free === 0) return;
    const j = (model.tail + (slotAt % free)) % ring.slots;
    if (model.spoilt.has(j)) return;
    this.spoilt.get(ring)!.set(j, ring.bufIdx(j));
    model.spoilt.add(j);
    netmap_slot.set.buf_idx(this.rig.m, ring.slot(j), slotAt % 2 === 0 ? 1 : 0xffff_ffff);
  }

  check(): void {
    for (const [i, p] of this.rig.ports.entries()) {
      const model = this.model.ports[i]!;
      for (const [k, ring] of p.tx.entries()) same(ring, model.tx[k]!, `port ${i} tx ${k}`);
      for (const [k, ring] of p.rx.entries()) same(ring, model.rx[k]!.counts, `port ${i} rx ${k}`);
    }
  }

  /** Every buffer of the region is in exactly one slot. */
  buffers(p: RigPort): void {
    const seen: number[] = [];
    for (const ring of [...p.tx, ...p.rx]) {
      const spoilt = this.spoilt.get(ring);
      for (let j = 0; j < ring.slots; j++) seen.push(spoilt?.get(j) ?? ring.bufIdx(j));
    }
    assert.deepEqual(
      seen.sort((a, b) => a - b),
      Array.from(seen, (_, i) => i + 2),
    );
  }
}

function same(ring: RigRing, counts: Readonly<Record<string, number>>, what: string): void {
  for (const [name, value] of Object.entries(counts)) {
    assert.equal(ring.count(name as 'packets'), value, `${what} ${name}`);
  }
  assert.equal(ring.count('repairs'), 0);
}

describe('VALE against a model', () => {
  for (const [where, start] of STARTS) {
    it(`same frames, same order, same counters, every buffer once; ${where}`, () => {
      fc.assert(
        fc.property(
          fc.array(portShape, { minLength: 2, maxLength: 5 }),
          fc.array(step, { maxLength: 40 }),
          (shapes, steps) => {
            const pair = new Pair(start, shapes);
            try {
              for (const s of steps) {
                if (s.op === 'send') pair.send(s.port, s.ring, s.packets);
                else if (s.op === 'receive') pair.receive(s.port);
                else if (s.op === 'toggle') pair.toggle(s.port, s.ring);
                else if (s.op === 'swap') pair.swap(s.port);
                else pair.spoil(s.port, s.at);
                pair.check();
              }
              for (const [i, p] of pair.rig.ports.entries()) {
                pair.receive(i);
                pair.buffers(p);
              }
            } finally {
              pair.rig.close();
            }
          },
        ),
        { numRuns: runs },
      );
    });
  }
});
