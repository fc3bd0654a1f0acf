/**
 * The datapath alone: one thread, a VALE switch, two ports with regions of their own, learning on. The two guests are
 * reduced to what moves the rings: head = what was received, head += batch. Millions of packets per second.
 */
import type { Views } from '../src/abi/index.ts';
import { domain as domainStruct, kring, netmap_slot, nm_csb_atok, nm_csb_ktoa } from '../src/abi/index.ts';
import { BUF_SIZE } from '../src/host/config.ts';
import { loadDatapath } from '../src/kloop/datapath.ts';
import { Arena, ArenaSpace, Region } from '../src/memory/index.ts';
import { allRings, createPipe, createRegistration } from '../src/ports/index.ts';
import { BROADCAST, frame, mac, Rig, RigRing } from '../tests/unit/datapath/rig.ts';
import type { Context, Row } from './bench.ts';
import { conditions } from './bench.ts';

export const SIZES = [60, 512, 1514];
export const BATCHES = [1, 16, 256, 1024, 4096];
/** How long the module gets before, to be compiled. */
export const COMPILE_MS = 200;

/**
 * Millions of packets per second, delivered.
 * @param addresses source and destination addresses in turn
 * @param batch packets per turn of `serve`
 * @param ms how long, after the module was compiled
 * @param hugePages whether the regions lie on huge pages, if there are enough
 */
export function measureDatapath(
  size: number,
  addresses: number,
  slots: number,
  batch: number,
  ms: number,
  hugePages = false,
): number {
  const rig = new Rig();
  const shape = { txSlots: slots, rxSlots: slots, bufSize: BUF_SIZE, hugePages };
  const a = rig.addPort(shape);
  const b = rig.addPort(shape);
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
  const mpps = turnRings(rig.m, tx, rx, batch, ms, () => rig.serve());
  rig.close();
  return mpps;
}

/**
 * Millions of packets per second through a pipe in one region.
 * @param batch packets per turn @param ms how long
 */
export function measurePipe(size: number, slots: number, batch: number, ms: number, hugePages = false): number {
  const arena = Arena.create();
  const space = new ArenaSpace(arena, 4096);
  const { m } = arena;
  const dp = loadDatapath(arena.memory);
  const domain = space.alloc(domainStruct.size);
  arena.mapAnonymous(domain, domainStruct.size);
  dp.pipeInit(domain);
  const sizes = { interfaces: 2, rings: 4, slots, buffers: 4 * slots, bufSize: BUF_SIZE, hugePages };
  const region = new Region({ name: 'pipe', ...sizes }, 1);
  const shape = { txRings: 1, rxRings: 1, txSlots: slots, rxSlots: slots };
  const [a, b] = createPipe(space, region, ['p{', 'p}'], shape).ports.map((port) => {
    dp.valeAttach(domain, port.port);
    const registration = createRegistration(
      space,
      region,
      port,
      port,
      { mac: [2, 0, 0, 0, 0, 1], vnetHdr: false },
      4096,
    );
    const [atok, ktoa] = registration.csbAddr;
    for (const page of [atok, ktoa]) arena.mapAnonymous(page, 4096);
    const krings = allRings(registration).map((ring) => ring.kring);
    for (const [i, k] of krings.entries()) {
      kring.set.atok(m, k, atok + i * nm_csb_atok.size);
      kring.set.ktoa(m, k, ktoa + i * nm_csb_ktoa.size);
      dp.krStart(k);
    }
    return { tx: new RigRing(m, registration.txRings[0]!.kring), rx: new RigRing(m, registration.rxRings[0]!.kring) };
  });
  const { tx } = a!;
  const { rx } = b!;
  for (let i = 0; i < slots; i++) m.u16[(tx.slot(i) + netmap_slot.ofs.len) >>> 1] = size;
  const mpps = turnRings(m, tx, rx, batch, ms, () => dp.serve(domain));
  region.close();
  arena.unmap(0, arena.bytes);
  return mpps;
}

/** Both applications reduced to moving positions, and the datapath's turn, again and again. */
function turnRings(m: Views, tx: RigRing, rx: RigRing, batch: number, ms: number, serve: () => number): number {
  const { slots } = tx;
  const n = Math.min(batch, slots - 1);
  let head = 0;
  const turn = (): void => {
    head += n;
    if (head >= slots) head -= slots;
    nm_csb_atok.set.cur(m, tx.atok, head);
    nm_csb_atok.set.head(m, tx.atok, head);
    // A turn takes a part of a long batch; the receiver takes that.
    let left = n;
    do {
      left -= serve();
      const tail = nm_csb_ktoa.get.hwtail(m, rx.ktoa);
      nm_csb_atok.set.cur(m, rx.atok, tail);
      nm_csb_atok.set.head(m, rx.atok, tail);
    } while (left > 0);
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
  run(COMPILE_MS);
  return run(ms);
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
  for (const batch of BATCHES) {
    progress(`datapath: pipe, batch ${batch}`);
    const slots = batch >= 1024 ? 4096 : 1024;
    const seen = await quiet.wait();
    const mpps = measurePipe(60, slots, Math.min(batch, slots - 1), ms);
    rows.push({ bench: 'datapath of a pipe', slots, batch, mpps, ...conditions([seen]) });
  }
  return rows;
}
