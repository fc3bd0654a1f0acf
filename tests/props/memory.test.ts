/**
 * The memory of ports in one region against a naive model: ports come and go, swap buffers while they live, die and
 * leave garbage. Every buffer is in one place, a full region says so exactly when it is full, everything comes back (R19).
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { NETMAP_FIRST_BUF, netmap_ring, netmap_slot } from '../../src/abi/index.ts';
import { rebuildRings } from '../../src/device/index.ts';
import { Arena, ArenaSpace, Region, RegionFullError } from '../../src/memory/index.ts';
import type { PortConfig, PortMemory, Registration } from '../../src/ports/index.ts';
import {
  allRings,
  createPort,
  createRegistration,
  ledgerOf,
  portNeeds,
  releasePorts,
  releaseRegistration,
} from '../../src/ports/index.ts';

const SIZES = { interfaces: 5, rings: 12, slots: 16, buffers: 100, bufSize: 64 };
const runs = process.env['PTNET_LONG'] === '1' ? 2500 : 150;

interface ModelPort {
  readonly memory: PortMemory;
  readonly registration: Registration;
  readonly needs: ReturnType<typeof portNeeds>;
  live: boolean;
}

class World {
  readonly arena = Arena.create();
  readonly space = new ArenaSpace(this.arena);
  readonly region = new Region({ name: 'model', ...SIZES }, 1);
  readonly freeBytes: number;
  readonly all = new Set(Array.from({ length: SIZES.buffers }, (_, i) => NETMAP_FIRST_BUF + i));
  ports: ModelPort[] = [];

  constructor() {
    this.region.mapInto(this.space);
    this.freeBytes = this.space.freeBytes;
  }

  open(config: PortConfig): void {
    const needs = portNeeds(config);
    const used = (f: (n: typeof needs) => number): number => this.ports.reduce((sum, p) => sum + f(p.needs), 0);
    const fits =
      this.ports.length < SIZES.interfaces &&
      used((n) => n.rings) + needs.rings <= SIZES.rings &&
      used((n) => n.buffers) + needs.buffers <= SIZES.buffers;
    try {
      const memory = createPort(this.space, this.region, `vale0:${this.ports.length}`, config);
      const [record] = memory.ports;
      try {
        const identity = { mac: [2, 0, 0, 0, 0, 1], vnetHdr: false };
        const registration = createRegistration(this.space, this.region, record!, record!, identity, 4096);
        this.ports.push({ memory, registration, needs, live: true });
      } catch (e) {
        releasePorts(this.space, this.region, memory);
        throw e;
      }
      assert.ok(fits);
    } catch (e) {
      assert.ok(e instanceof RegionFullError && !fits, String(e));
    }
  }

  slots(port: ModelPort): number[] {
    const { registration: r } = port;
    return allRings(r).flatMap((ring) =>
      Array.from(
        { length: ring.numSlots },
        (_, k) => r.regionAddr + ring.ringOfs + netmap_ring.size + k * netmap_slot.size,
      ),
    );
  }

  bufIdx(slot: number): number {
    return netmap_slot.get.buf_idx(this.arena.m, slot);
  }

  swap(a: number, b: number): void {
    const slots = this.ports.filter((p) => p.live).flatMap((p) => this.slots(p));
    if (slots.length === 0) return;
    const [x, y] = [slots[a % slots.length]!, slots[b % slots.length]!];
    const idx = this.bufIdx(x);
    netmap_slot.set.buf_idx(this.arena.m, x, this.bufIdx(y));
    netmap_slot.set.buf_idx(this.arena.m, y, idx);
  }

  die(port: ModelPort, garbage: number): void {
    for (const [i, slot] of this.slots(port).entries()) {
      if (garbage >= 0 && i % 3 === 0) netmap_slot.set.buf_idx(this.arena.m, slot, garbage + i);
    }
    port.live = false;
    const { m } = this.arena;
    const others = this.ports.filter((p) => p !== port);
    rebuildRings(
      m,
      port.registration,
      others.map(({ registration, live }) => ({ m, holdings: registration, live })),
    );
    const held = this.slots(port).map((slot) => this.bufIdx(slot));
    assert.deepEqual(new Set(held), new Set(this.ledger(port)), 'what it holds is what it will give back');
  }

  ledger(port: ModelPort): number[] {
    return allRings(port.registration).flatMap((ring) => ledgerOf(this.arena.m, ring));
  }

  close(port: ModelPort): void {
    if (port.live) this.die(port, -1);
    this.ports = this.ports.filter((p) => p !== port);
    releaseRegistration(this.space, this.region, port.registration);
    releasePorts(this.space, this.region, port.memory);
  }

  check(): void {
    const inSlots = this.ports.flatMap((p) => this.slots(p).map((slot) => this.bufIdx(slot)));
    assert.equal(new Set(inSlots).size, inSlots.length, 'no buffer in two slots');
    const ledgers = this.ports.flatMap((p) => this.ledger(p));
    assert.equal(new Set(ledgers).size, ledgers.length, 'ledgers are disjoint');
    assert.deepEqual(new Set(inSlots), new Set(ledgers), 'what is handed out is in the slots');
    for (const idx of ledgers) assert.ok(this.all.has(idx));
    assert.equal(this.region.free.buffers, SIZES.buffers - ledgers.length);
  }

  end(): void {
    for (const port of this.ports) this.close(port);
    assert.deepEqual(this.region.free, { interfaces: SIZES.interfaces, rings: SIZES.rings, buffers: SIZES.buffers });
    assert.deepEqual(new Set(this.region.takeBuffers(SIZES.buffers)), this.all, 'each buffer once');
    assert.equal(this.space.freeBytes, this.freeBytes, 'the arena has everything back');
    this.region.close();
    this.arena.unmap(0, this.arena.bytes);
  }
}

const rings = fc.integer({ min: 1, max: 3 });
const slots = fc.integer({ min: 2, max: 16 });
const step = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      op: fc.constant('open' as const),
      config: fc.record({ txRings: rings, rxRings: rings, txSlots: slots, rxSlots: slots }),
    }),
  },
  { weight: 8, arbitrary: fc.record({ op: fc.constant('swap' as const), a: fc.nat(99), b: fc.nat(99) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      op: fc.constant('die' as const),
      port: fc.nat(9),
      garbage: fc.integer({ min: -1, max: 120 }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('come' as const), port: fc.nat(9) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('close' as const), port: fc.nat(9) }) },
);

test('R19: no buffer lost or doubled, whoever comes, swaps, dies and goes', () => {
  fc.assert(
    fc.property(fc.array(step, { minLength: 3, maxLength: 100, size: 'max' }), (steps) => {
      const world = new World();
      for (const s of steps) {
        if (s.op === 'open') world.open(s.config);
        else if (s.op === 'swap') world.swap(s.a, s.b);
        else if (world.ports.length > 0) {
          const port = world.ports[s.port % world.ports.length]!;
          if (s.op === 'die') world.die(port, s.garbage);
          else if (s.op === 'come') port.live = true;
          else world.close(port);
        }
        world.check();
      }
      world.end();
    }),
    { numRuns: runs },
  );
});
