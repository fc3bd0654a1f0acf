/**
 * Guests that write anything anywhere they can: CSB, rings, slots, buffers, between turns and during them. The datapath
 * neither traps nor loops, and two honest neighbours on the same switch lose nothing.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { afterEach, describe, it } from 'node:test';
import { Worker } from 'node:worker_threads';
import * as fc from 'fast-check';
import { kring } from '../../../src/abi/index.ts';
import type { RigPort } from './rig.ts';
import { BROADCAST, frame, mac, Rig, STARTS } from './rig.ts';

const long = process.env.PTNET_LONG === '1';
const SLOTS = 16;
const HOSTILE = 2;

/** What guest i can write: its CSB page of atok and of ktoa, its region. [offset, bytes, largest sensible value] */
const ranges = (p: RigPort): [number, number, number][] => [
  [p.tx[0]!.atok, 3 * 64, SLOTS],
  [p.tx[0]!.ktoa, 3 * 64, SLOTS],
  [p.tx[0]!.slot(0), SLOTS * 16, 50],
  [p.tx[1]!.slot(0), SLOTS * 16, 50],
  [p.rx[0]!.slot(0), SLOTS * 16, 50],
  [p.regionOfs, p.region.layout.size, 255],
];

/** Runs `body` while a second thread writes garbage into the given ranges. */
async function whileGarbage(rig: Rig, garbage: readonly [number, number, number][], body: () => void): Promise<void> {
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(new URL('./hostile-worker.js', import.meta.url), {
    workerData: { memory: rig.arena.memory, ranges: garbage, stop, seed: 12345 },
  });
  try {
    await once(worker, 'message');
    body();
  } finally {
    // Both at once: node may emit the last message and the exit in one go.
    const end = Promise.all([once(worker, 'message'), once(worker, 'exit')]);
    Atomics.store(stop, 0, 1);
    const [[writes]] = (await end) as [[number], unknown];
    assert.ok(writes > 0);
  }
}

for (const [where, start] of STARTS) {
  describe(`hostile guests, ${where}`, () => {
    let rig: Rig;
    afterEach(() => rig.close());

    /** Ports 0 and 1 are honest, with room for what the others flood in a turn; the rest is hostile. */
    const make = (): void => {
      rig = new Rig(start);
      const honest = { txSlots: 64, rxSlots: 1024 };
      for (let i = 0; i < 2; i++) rig.addPort(honest);
      for (let i = 0; i < HOSTILE; i++) {
        rig.addPort({ txSlots: SLOTS, rxSlots: SLOTS, txRings: 2, bufSize: 256, vnetHdrLen: 12 * (i % 2) });
      }
      for (const [i, p] of rig.ports.entries()) {
        p.tx[0]!.put(frame(BROADCAST, mac(i + 0x7701)));
        p.tx[0]!.publish();
      }
      rig.serve();
      for (const p of rig.ports) for (const r of p.rx) r.receive();
    };

    let tag = 0;
    /**
     * One turn of honest traffic, both ways; every frame must arrive, in order. Broadcast, because a hostile guest may
     * send with anyone's source address, and so learn away a unicast frame; and it may send what it received again.
     */
    const honestTurn = (): void => {
      const [a, b] = rig.ports;
      const sent: Uint8Array[][] = [[], []];
      for (const [i, p] of [a!, b!].entries()) {
        for (let k = 0; k < 5; k++) {
          const f = frame(BROADCAST, mac(0x7701 + i), 60 + ((tag * 37) % 1000), tag++);
          p.tx[0]!.put(f);
          sent[i]!.push(f);
        }
        p.tx[0]!.publish();
      }
      rig.serve();
      for (const [i, p] of [b!, a!].entries()) {
        const got = p.rx[0]!.receive();
        let at = 0;
        for (const f of sent[i]!) {
          while (at < got.length && !(got[at]!.length === 1 && Buffer.compare(got[at]![0]!, f) === 0)) at++;
          assert.ok(at < got.length, `frame ${tag} of port ${i} did not arrive as it was sent`);
          at++;
        }
        assert.equal(p.rx[0]!.count('drop_full'), 0);
      }
      for (const p of rig.ports) {
        for (const ring of [...p.tx, ...p.rx]) {
          for (const name of ['hwcur', 'hwtail', 'rhead', 'rcur'] as const) {
            assert.ok(kring.get[name](rig.m, ring.kr) < ring.slots, name);
          }
        }
      }
      rig.signals();
    };

    it('R5, R7: any words at any time between turns', () => {
      const write = fc.record({
        range: fc.nat(5),
        at: fc.nat(0xffff),
        value: fc.oneof(fc.nat(40), fc.nat(0xffff_ffff), fc.constantFrom(0x0020_003c, 0x0010_0040, 0x0001_ffff)),
      });
      fc.assert(
        fc.property(fc.array(fc.array(write, { maxLength: 30 }), { minLength: 1, maxLength: 10 }), (turns) => {
          make();
          try {
            for (const writes of turns) {
              for (const [i, w] of writes.entries()) {
                const [ofs, bytes] = ranges(rig.ports[2 + (i % HOSTILE)]!)[w.range]!;
                rig.m.u32[(ofs + ((w.at * 4) % bytes)) >>> 2] = w.value;
              }
              honestTurn();
              rig.dp.arm(rig.domain);
              assert.ok(rig.dp.look(rig.domain) <= 2 + 2 * HOSTILE);
            }
            for (const p of rig.ports) rig.dp.valeDetach(rig.domain, p.port);
          } finally {
            rig.close();
          }
        }),
        { numRuns: long ? 2000 : 150 },
      );
      make();
    });

    it('R5: words that change while they are looked at', async () => {
      make();
      await whileGarbage(rig, rig.ports.slice(2).flatMap(ranges), () => {
        for (let i = 0; i < (long ? 200_000 : 5000); i++) {
          honestTurn();
          rig.dp.arm(rig.domain);
          rig.dp.look(rig.domain);
        }
      });
      const [c, d] = rig.ports.slice(2);
      const sum = (name: 'repairs' | 'drop_bad' | 'packets') =>
        [...c!.tx, ...d!.tx].reduce((n, ring) => n + ring.count(name), 0);
      assert.ok(sum('repairs') > 0 && sum('drop_bad') > 0 && sum('packets') > 0, 'the garbage reached every check');
    });

    it('R5: a VirtIO header arrives as it was checked, whatever its sender does meanwhile', async () => {
      rig = new Rig(start);
      const [a, b] = [rig.addPort({ vnetHdrLen: 12 }), rig.addPort({ vnetHdrLen: 12 })];
      const f = frame(BROADCAST, mac(1), 60, 0, 12);
      const headers = Array.from({ length: 31 }, (_, i): [number, number, number] => [a.tx[0]!.buf(i), 4, 0]);
      await whileGarbage(rig, headers, () => {
        // Until some garbage was seen in time, which on one processor may take a while.
        const turns = long ? 100_000 : 5000;
        for (let i = 0; i < turns || (i < 1000 * turns && a.tx[0]!.count('drop_bad') === 0); i++) {
          // The ring goes round its first 31 slots' buffers, and one that stays as it is.
          for (let k = 0; k < 31; k++) a.tx[0]!.put(f);
          a.tx[0]!.publish();
          rig.serve();
          for (const [got] of b.rx[0]!.receive()) {
            assert.ok((got![0]! & ~3) === 0, `flags ${got![0]}`);
            assert.ok([0, 1, 3, 4, 0x81, 0x84].includes(got![1]!), `gso_type ${got![1]}`);
          }
        }
      });
      assert.ok(a.tx[0]!.count('drop_bad') > 0 && b.rx[0]!.count('packets') > 0);
    });
  });
}
