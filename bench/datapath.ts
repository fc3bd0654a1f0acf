/**
 * The datapath alone: one thread, a VALE switch, two ports with regions of their own, learning on. The two guests are
 * reduced to what moves the rings: head = what was received, head += batch. Millions of packets per second.
 *
 * `node dist/bench/datapath.js [--json] [--ms N]`: measures, asserts nothing.
 */
import { fileURLToPath } from 'node:url';
import { nm_csb_atok, nm_csb_ktoa } from '../src/abi/index.ts';
import { BROADCAST, frame, mac, Rig } from '../tests/unit/datapath/rig.ts';

export interface DatapathRow {
  readonly bench: 'datapath';
  /** Bytes of a frame. */
  readonly size: number;
  /** Source and destination addresses in turn. */
  readonly addresses: number;
  /** Slots of each ring. */
  readonly slots: number;
  /** Packets per turn of `serve`. */
  readonly batch: number;
  /** Millions of packets per second, delivered. */
  readonly mpps: number;
}

export const SIZES = [60, 512, 1514];
export const BATCHES = [1, 16, 256, 1024, 4096];

/** @param ms time of each row; the module gets a tenth of it before, to be compiled */
export function measureDatapath(size: number, addresses: number, batch: number, ms = 200): DatapathRow {
  const slots = batch >= 1024 ? 4096 : 1024;
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
  return { bench: 'datapath', size, addresses, slots, batch: n, mpps };
}

export function benchDatapath(ms = 200): DatapathRow[] {
  const rows: DatapathRow[] = [];
  for (const addresses of [1, 256]) {
    for (const size of SIZES) for (const batch of BATCHES) rows.push(measureDatapath(size, addresses, batch, ms));
  }
  return rows;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const at = process.argv.indexOf('--ms');
  const rows = benchDatapath(at > 0 ? Number(process.argv[at + 1]) : 200);
  if (process.argv.includes('--json')) console.log(JSON.stringify(rows, undefined, 2));
  else console.table(rows.map((row) => ({ ...row, mpps: Number(row.mpps.toFixed(2)) })));
}
