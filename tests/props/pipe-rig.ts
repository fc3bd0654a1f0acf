/** Two pipes in one region, driven without the rest of the daemon, and the model of both. */
import assert from 'node:assert/strict';
import type { Views } from '../../src/abi/index.ts';
import {
  domain as domainStruct,
  KRING_FROZEN,
  kring,
  NETMAP_FIRST_BUF,
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

export const N = 8;
export const BUF_SIZE = 128;

/** One end: its device's registration, its rings as its application sees them, and the model's two directions. */
export interface End {
  readonly registration: Registration;
  readonly tx: RigRing;
  readonly rx: RigRing;
  readonly out: ModelPipe;
  readonly in: ModelPipe;
  running: boolean;
  live: boolean;
}

export class Chain {
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
      others.map(({ registration, live }) => ({ m: this.m, holdings: registration, live })),
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
    return kring.get.state(this.m, end.tx.kr) === KRING_FROZEN;
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
