/**
 * The datapath alone: one thread, a VALE switch, two ports with regions of their own, learning on. The two guests are
 * reduced to what moves the rings: head = what was received, head += batch. Millions of packets per second.
 */
import { nm_csb_atok, nm_csb_ktoa } from '../src/abi/index.ts';
import { BROADCAST, frame, mac, Rig } from '../tests/unit/datapath/rig.ts';
import type { Context, Row } from './bench.ts';
import { conditions } from './bench.ts';

export const SIZES = [60, 512, 1514];
export const BATCHES = [1, 16, 256, 1024, 4096];

/**
 * Millions of packets per second, delivered.
 * @param addresses source and destination addresses in turn
 * @param batch packets per turn of `serve`
 * @param ms how long; the module gets a tenth of it before, to be compiled
 */
export function measureDatapath(size: number, addresses: number, slots: number, batch: number, ms: number): number {
  const rig = new Rig();
  const a = rig.addPort({ txSlots: slots, rxSlots: slots });
  const b = rig.addPort({ txSlots: slots, rxSlots: slots });
  const tx = a.tx[0]!;
  const rx = b.rx[0]!;
  for (let i = 0; i < addresses; i++) {
    b.tx[0]!.put(frame(BROADCAST, mac(0x4000 + i)));
    if (b.tx[0]!.avail === 0 || i === addresses - 1) {
      b.tx[0]!.publish();
      rig.serve();
      a.rx[0]!.receive();
    }
  }
  for (let i = 0; i < slots - 1; i++) tx.put(frame(mac(0x4000 + (i % addresses)), mac(0x8000 + (i % addresses)), size));
  // The last slot as the first ones: the ring goes round.
  rig.m.u8.set(frame(mac(0x4000), mac(0x8000), size), tx.buf(slots - 1));
  rig.m.u64[(tx.slot(slots - 1) >>> 3) + 0] = BigInt(tx.bufIdx(slots - 1)) | (BigInt(size) << 32n);
  const n = Math.min(batch, slots - 1);
  let head = 0;
  const turn = (): void => {
    head += n;
    if (head >= slots) head -= slots;
    nm_csb_atok.set.cur(rig.m, tx.atok, head);
    nm_csb_atok.set.head(rig.m, tx.atok, head);
    rig.serve();
    const tail = nm_csb_ktoa.get.hwtail(rig.m, rx.ktoa);
    nm_csb_atok.set.cur(rig.m, rx.atok, tail);
    nm_csb_atok.set.head(rig.m, rx.atok, tail);
  };
  const turns = Math.max(1, Math.ceil(20_000 / n));
  const run = (limit: number): number => {
    const before = rx.count('packets');
    const start = process.hrtime.bigint();
    let elapsed = 0;
    do {
      for (let i = 0; i < turns; i++) turn();
      elapsed = Number(process.hrtime.bigint() - start);
    } while (elapsed < limit * 1e6);
    return ((rx.count('packets') - before) / elapsed) * 1e3;
  };
  run(ms / 10);
  const mpps = run(ms);
  rig.close();
  return mpps;
}

export async function benchDatapath({ quiet, ms, progress }: Context): Promise<Row[]> {
  const rows: Row[] = [];
  for (const addresses of [1, 256]) {
    for (const size of SIZES) {
      for (const batch of BATCHES) {
        progress(`datapath: ${size} bytes, ${addresses} addresses, batch ${batch}`);
        const slots = batch >= 1024 ? 4096 : 1024;
        const seen = await quiet.wait();
        const mpps = measureDatapath(size, addresses, slots, Math.min(batch, slots - 1), ms);
        rows.push({ bench: 'datapath', size, addresses, slots, batch, mpps, ...conditions([seen]) });
      }
    }
  }
  return rows;
}
