/**
 * Pipes against a naive model, on one region: two pipes in a chain, whose middle ends swap buffers; any mix of sending,
 * receiving, bad slots, chains, stops, and deaths of ends. Same frames in the same order, nothing dropped, no buffer lost or doubled (R10, R19).
 */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import type { Views } from '../../src/abi/index.ts';
import {
  domain as domainStruct,
  kring,
  NETMAP_FIRST_BUF,
  NS_BUF_CHANGED,
  NS_INDIRECT,
  NS_MOREFRAG,
  netmap_slot,
  nm_csb_atok,
  nm_csb_ktoa,
} from '../../src/abi/index.ts';
import { rebuildRings } from '../../src/device/index.ts';
import type { Datapath } from '../../src/kloop/datapath.ts';
import { loadDatapath } from '../../src/kloop/datapath.ts';
import { Arena, ArenaSpace, Region } from '../../src/memory/index.ts';
import type { PortMemory, Registration } from '../../src/ports/index.ts';
import { allRings, createPipe, createRegistration, ledgerOf, releasePorts } from '../../src/ports/index.ts';
import { RigRing } from '../unit/datapath/rig.ts';
import { meaning, ModelPipe } from './pipe-model.ts';

const N = 8;
const BUF_SIZE = 128;
const runs = process.env['PTNET_LONG'] === '1' ? 2500 : 150;

/** One end: its device's registration, its rings as its application sees them, and the model's two directions. */
interface End {
  readonly registration: Registration;
  readonly tx: RigRing;
  readonly rx: RigRing;
  readonly out: ModelPipe;
  readonly in: ModelPipe;
  running: boolean;
  live: boolean;
}

class Chain {
  readonly arena = Arena.create();
  readonly space: ArenaSpace;
  readonly m: Views;
  readonly dp: Datapath;
  readonly region: Region;
  readonly memory: PortMemory[] = [];
  readonly domains: number[] = [];
  readonly ends: End[] = [];
  readonly directions: ModelPipe[] = [];

  constructor(start: number) {
    this.space = new ArenaSpace(this.arena, start);
    this.m = this.arena.m;
    this.dp = loadDatapath(this.arena.memory);
    const sizes = { interfaces: 4, rings: 8, slots: N, buffers: 4 * N, bufSize: BUF_SIZE };
    this.region = new Region({ name: 'chain', ...sizes }, 1);
    for (const name of ['p', 'q']) {
      const domain = this.space.alloc(domainStruct.size);
      this.arena.mapAnonymous(domain, domainStruct.size);
      this.dp.pipeInit(domain);
      this.domains.push(domain);
      const shape = { txRings: 1, rxRings: 1, txSlots: N, rxSlots: N };
      const memory = createPipe(this.space, this.region, [`${name}{`, `${name}}`], shape);
      this.memory.push(memory);
      const isBuffer = (idx: number): boolean => idx >= NETMAP_FIRST_BUF && idx < this.region.layout.bufPool.objnum;
      const [a] = memory.ports;
      const ways = [a!.txRings[0]!, a!.rxRings[0]!].map(
        (ring) => new ModelPipe(ledgerOf(this.m, ring), BUF_SIZE, isBuffer),
      );
      this.directions.push(...ways);
      for (const [i, port] of memory.ports.entries()) {
        this.dp.valeAttach(domain, port.port);
        const identity = { mac: [2, 0, 0, 0, 0, 1], vnetHdr: false };
        const registration = createRegistration(this.space, this.region, port, port, identity, 4096);
        for (const window of registration.csbAddr) this.arena.mapAnonymous(window, 4096);
        for (const [j, ring] of allRings(registration).entries()) {
          kring.set.atok(this.m, ring.kring, registration.csbAddr[0] + j * nm_csb_atok.size);
          kring.set.ktoa(this.m, ring.kring, registration.csbAddr[1] + j * nm_csb_ktoa.size);
        }
        this.ends.push({
          registration,
          tx: new RigRing(this.m, registration.txRings[0]!.kring),
          rx: new RigRing(this.m, registration.rxRings[0]!.kring),
          out: ways[i]!,
          in: ways[1 - i]!,
          running: false,
          live: false,
        });
      }
    }
  }

  start(end: End): void {
    if (end.running) return;
    for (const ring of [end.tx, end.rx]) {
      assert.equal(this.dp.krStart(ring.kr), 0);
      ring.head = ring.hwcur;
    }
    end.running = true;
    end.live = true;
  }

  /** One last sync; what was published goes, the rest is forgotten. */
  stop(end: End): void {
    if (!end.running) return;
    for (const ring of [end.tx, end.rx]) this.dp.krStop(ring.kr);
    end.out.transfer();
    end.in.release();
    end.running = false;
    end.out.forgetUnsent();
    end.in.forgetUnreleased();
  }

  serve(): void {
    for (const domain of this.domains) {
      this.dp.serve(domain);
    }
    for (const end of this.ends) if (end.running) end.in.release();
    for (const end of this.ends) if (end.running) end.out.transfer();
    this.check();
  }

  /** The end's client is gone, and has left its slots in any state. */
  die(end: End, garbage: readonly number[]): void {
    this.stop(end);
    end.out.abandonSender();
    end.in.forgetUnreleased();
    const mine = [
      ...end.out.senders().map((p) => ({ way: end.out, ring: end.tx, p })),
      ...end.in.receivers().map((p) => ({ way: end.in, ring: end.rx, p })),
    ];
    for (const [i, { ring, p }] of mine.entries()) {
      const value = garbage[i % Math.max(1, garbage.length)] ?? -1;
      if (value >= 0) netmap_slot.set.buf_idx(this.m, ring.slot(p % N), value);
    }
    const others = this.ends.filter((e) => e !== end);
    const heldByOthers = new Set(others.flatMap((e) => this.held(e)));
    end.live = false;
    const krings = [end.tx.kr, end.rx.kr];
    for (const k of krings) assert.equal(this.dp.krFreeze(k), 0);
    this.serveFrozen();
    rebuildRings(
      this.m,
      end.registration,
      others.map(({ registration, live }) => ({ m: this.m, registration, live })),
    );
    for (const k of krings) assert.equal(this.dp.krReset(k), 0);
    // What waited for it still waits where its buffer is nobody else's.
    const seen = new Set<number>();
    for (const { way, ring, p } of mine) {
      const slot = way.at(p);
      const record = way.record[p % N]!;
      const idx = ring.bufIdx(p % N);
      if (!heldByOthers.has(record) && !seen.has(record)) assert.equal(idx, record, `slot ${p % N} keeps its buffer`);
      seen.add(record);
      slot.idx = idx;
      way.record[p % N] = idx;
      slot.len = netmap_slot.get.len(this.m, ring.slot(p % N));
      slot.flags = netmap_slot.get.flags(this.m, ring.slot(p % N));
      if (way === end.out) assert.deepEqual([slot.len, slot.flags], [0, 0]);
    }
    this.check();
  }

  /** While an end is frozen, the other one is served as if the pipe were full. */
  serveFrozen(): void {
    const before = this.directions.map((d) => JSON.stringify(d.slots));
    for (const domain of this.domains) this.dp.serve(domain);
    // Ends of the other pipe are served as ever.
    for (const end of this.ends) {
      const frozen = this.ends.some((e) => !e.live && (e.in === end.out || e.out === end.in) && this.#frozen(e));
      if (end.running && !frozen) {
        end.in.release();
        end.out.transfer();
      }
    }
    assert.equal(before.length, 4);
  }

  #frozen(end: End): boolean {
    return kring.get.state(this.m, end.tx.kr) === 2;
  }

  /** Buffers in the hands of an end's application. */
  held(end: End): number[] {
    return [...end.out.senders().map((p) => end.out.at(p).idx), ...end.in.receivers().map((p) => end.in.at(p).idx)];
  }

  check(): void {
    for (const end of this.ends) {
      const { out, in: way, tx, rx } = end;
      const position = (p: number): number => p % N;
      assert.equal(kring.get.hwcur(this.m, tx.kr), position(out.sent), 'handed over');
      assert.equal(kring.get.hwtail(this.m, tx.kr), position(out.released + N - 1), 'room');
      assert.equal(kring.get.hwcur(this.m, rx.kr), position(way.released), 'released');
      assert.equal(kring.get.hwtail(this.m, rx.kr), position(way.visible), 'R6: whole packets are visible');
      if (end.running)
        assert.deepEqual([tx.hwtail, rx.hwtail], [position(out.released + N - 1), position(way.visible)]);
      assert.equal(tx.count('packets'), out.packets);
      assert.equal(tx.count('drop_bad'), out.dropped);
      for (const [ring, p, slot] of [
        ...out.senders().map((at) => [tx, at, out.at(at)] as const),
        ...way.receivers().map((at) => [rx, at, way.at(at)] as const),
      ]) {
        const at = ring.slot(position(p));
        const got = [netmap_slot.get.buf_idx(this.m, at), netmap_slot.get.len(this.m, at)];
        assert.deepEqual(got, [slot.idx, slot.len], `slot ${position(p)}`);
        assert.equal(meaning(netmap_slot.get.flags(this.m, at)), meaning(slot.flags));
      }
    }
  }

  /** Every buffer is in exactly one place: what holds as long as applications only swap. */
  conserved(): void {
    const all = this.ends.flatMap((end) => this.held(end));
    assert.equal(new Set(all).size, 4 * N, 'R19: no buffer lost or doubled');
  }

  close(): void {
    for (const end of this.ends) this.die(end, []);
    for (const { registration, out } of this.ends) {
      const ledger = ledgerOf(this.m, registration.txRings[0]!).toSorted((a, b) => a - b);
      assert.deepEqual(
        out.slots.map((slot) => slot.idx).toSorted((a, b) => a - b),
        ledger,
        'ledgers say what there is',
      );
    }
    const total = this.region.layout.bufPool.objnum - NETMAP_FIRST_BUF;
    for (const memory of this.memory) releasePorts(this.space, this.region, memory);
    assert.deepEqual(this.region.free.buffers, total, 'all buffers are given back');
    assert.equal(new Set(this.region.takeBuffers(total)).size, total, 'each once');
    this.region.close();
    this.arena.unmap(0, this.arena.bytes);
  }
}

const end = fc.nat(3);
const step = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      op: fc.constant('send' as const),
      end,
      frags: fc.array(fc.integer({ min: 0, max: BUF_SIZE }), { minLength: 1, maxLength: 4 }),
      open: fc.oneof({ weight: 12, arbitrary: fc.constant(false) }, { weight: 3, arbitrary: fc.constant(true) }),
      spoil: fc.oneof(
        { weight: 16, arbitrary: fc.constant('' as const) },
        { weight: 1, arbitrary: fc.constantFrom('len' as const, 'indirect' as const, 'idx' as const) },
      ),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({ op: fc.constant('receive' as const), end, slots: fc.integer({ min: 1, max: N }) }),
  },
  {
    weight: 5,
    arbitrary: fc.record({
      op: fc.constant('forward' as const),
      slots: fc.integer({ min: 1, max: 4 }),
      publish: fc.constantFrom('both' as const, 'both' as const, 'tx' as const, 'rx' as const, 'none' as const),
    }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('swap' as const), end }) },
  { weight: 8, arbitrary: fc.record({ op: fc.constant('serve' as const) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('stop' as const), end }) },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('start' as const), end }) },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('die' as const),
      end,
      garbage: fc.array(fc.integer({ min: -1, max: 40 }), { maxLength: 6 }),
    }),
  },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

function write(chain: Chain, ring: RigRing, way: ModelPipe, len: number, flags: number, idx?: number): void {
  const p = ring.slot(way.head % N);
  if (idx !== undefined) netmap_slot.set.buf_idx(chain.m, p, idx);
  netmap_slot.set.len(chain.m, p, len);
  netmap_slot.set.flags(chain.m, p, flags);
  const slot = way.at(way.head);
  Object.assign(slot, { idx: idx ?? slot.idx, len, flags });
  way.head++;
  ring.head = way.head % N;
}

function publishTx(e: End): void {
  e.out.published = e.out.head;
  e.tx.publish(e.out.head % N);
}

function publishRx(e: End): void {
  e.in.returned = e.in.taken;
  e.rx.publish(e.in.taken % N);
}

function play(chain: Chain, s: Step): void {
  if (s.op === 'serve') return chain.serve();
  if (s.op === 'forward') {
    // The middle: slave of the first pipe, master of the second.
    const [from, to] = [chain.ends[1]!, chain.ends[2]!];
    if (!from.running || !to.running) return;
    for (let i = 0; i < s.slots && from.in.taken < from.in.visible && to.out.room > 0; i++) {
      const [source, target] = [from.in.at(from.in.taken), to.out.at(to.out.head)];
      const spare = target.idx;
      // A chain goes on in pieces: each slot is a packet here.
      write(chain, to.tx, to.out, source.len, NS_BUF_CHANGED, source.idx);
      const p = from.rx.slot(from.in.taken % N);
      netmap_slot.set.buf_idx(chain.m, p, spare);
      netmap_slot.set.flags(chain.m, p, source.flags | NS_BUF_CHANGED);
      source.idx = spare;
      from.in.taken++;
    }
    // Whoever dies now has said half of it, or nothing.
    if (s.publish !== 'rx' && s.publish !== 'none') publishTx(to);
    if (s.publish !== 'tx' && s.publish !== 'none') publishRx(from);
    return;
  }
  const e = chain.ends[s.end]!;
  if (s.op === 'die') return chain.die(e, s.garbage);
  if (s.op === 'start') return chain.start(e);
  if (s.op === 'stop') return chain.stop(e);
  if (!e.running) return;
  if (s.op === 'receive') {
    e.in.taken = Math.min(e.in.taken + s.slots, e.in.visible);
    return publishRx(e);
  }
  if (s.op === 'swap') {
    if (e.out.room < 2) return;
    const [a, b] = [e.out.at(e.out.head), e.out.at(e.out.head + 1)];
    [a.idx, b.idx] = [b.idx, a.idx];
    netmap_slot.set.buf_idx(chain.m, e.tx.slot(e.out.head % N), a.idx);
    netmap_slot.set.buf_idx(chain.m, e.tx.slot((e.out.head + 1) % N), b.idx);
    return;
  }
  if (e.out.room < s.frags.length) return;
  for (const [i, len] of s.frags.entries()) {
    const more = i + 1 < s.frags.length || s.open ? NS_MOREFRAG : 0;
    const spoiled = i === 0 ? s.spoil : '';
    if (spoiled === 'idx') {
      // The lost buffer comes back by the record, if it is what was exchanged last at this slot.
      const slot = e.out.at(e.out.head);
      if (slot.idx === e.out.record[e.out.head % N]) {
        write(chain, e.tx, e.out, len, more, 0x8000_0001);
        continue;
      }
    }
    write(
      chain,
      e.tx,
      e.out,
      spoiled === 'len' ? BUF_SIZE + 1 : len,
      more | (spoiled === 'indirect' ? NS_INDIRECT : 0),
    );
  }
  publishTx(e);
}

for (const [where, start] of [
  ['low offsets', 4096],
  ['R3: offsets above 2 GiB', 0xa000_0000],
] as const) {
  describe(`pipes against a model, ${where}`, () => {
    it('R10, R19: same slots, same order, nothing dropped, every buffer once', () => {
      fc.assert(
        fc.property(fc.array(step, { minLength: 5, maxLength: 100, size: 'max' }), (steps) => {
          const chain = new Chain(start);
          for (const e of chain.ends) chain.start(e);
          let ok = false;
          try {
            for (const s of steps) {
              play(chain, s);
              if (s.op === 'serve' || s.op === 'die') chain.conserved();
            }
            ok = true;
          } finally {
            if (ok) chain.close();
            else chain.arena.unmap(0, chain.arena.bytes);
          }
        }),
        { numRuns: runs },
      );
    });
  });
}
