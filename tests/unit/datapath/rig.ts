/**
 * A switch without the rest of the daemon: an arena with regions, krings and CSB pages, and the other side of each ring
 * as a guest would play it (mock: writes slots, cur, head; reads hwtail, hwcur). For tests and for bench/datapath.ts.
 */
import type { Views } from '../../../src/abi/index.ts';
import {
  domain,
  kring,
  NR_DIR_RX,
  NR_DIR_TX,
  NS_MOREFRAG,
  netmap_ring,
  netmap_slot,
  nm_csb_atok,
  nm_csb_ktoa,
  port,
} from '../../../src/abi/index.ts';
import type { Datapath } from '../../../src/kloop/datapath.ts';
import { drainSignals, loadDatapath } from '../../../src/kloop/datapath.ts';
import { Arena, ArenaSpace, Region, writeRing } from '../../../src/memory/index.ts';

/** A slot as a guest fills it or finds it. */
export interface Frag {
  readonly len: number;
  readonly flags: number;
  readonly bytes: Uint8Array;
}

/** One ring, both sides: `kr` is the host's, everything else what a guest does. */
export class RigRing {
  readonly m: Views;
  readonly kr: number;
  readonly ring: number;
  readonly slots: number;
  readonly bufBase: number;
  readonly bufSize: number;
  readonly atok: number;
  readonly ktoa: number;
  /** The guest's own head: what it filled (tx) or released (rx) up to. */
  head = 0;

  constructor(m: Views, kr: number) {
    this.m = m;
    this.kr = kr;
    this.ring = kring.get.ring(m, kr);
    this.slots = kring.get.num_slots(m, kr);
    this.bufBase = kring.get.buf_base(m, kr);
    this.bufSize = kring.get.buf_size(m, kr);
    this.atok = kring.get.atok(m, kr);
    this.ktoa = kring.get.ktoa(m, kr);
  }

  next(i: number): number {
    return i + 1 === this.slots ? 0 : i + 1;
  }

  slot(i: number): number {
    return this.ring + netmap_ring.size + i * netmap_slot.size;
  }

  bufIdx(i: number): number {
    return netmap_slot.get.buf_idx(this.m, this.slot(i));
  }

  buf(i: number): number {
    return this.bufBase + this.bufIdx(i) * this.bufSize;
  }

  get hwcur(): number {
    return nm_csb_ktoa.get.hwcur(this.m, this.ktoa);
  }

  get hwtail(): number {
    return nm_csb_ktoa.get.hwtail(this.m, this.ktoa);
  }

  /** A counter of the kring. */
  count(name: keyof typeof kring.get): number {
    return Number(kring.get[name](this.m, this.kr));
  }

  /** Slots the guest may still fill (tx) or has to read (rx). */
  get avail(): number {
    return (this.hwtail - this.head + this.slots) % this.slots;
  }

  /** Fills the slot at head without publishing it. */
  put(bytes: Uint8Array, flags = 0, len = bytes.length): void {
    if (this.avail === 0) throw new Error('no free slot');
    this.m.u8.set(bytes, this.buf(this.head));
    const p = this.slot(this.head);
    netmap_slot.set.len(this.m, p, len);
    netmap_slot.set.flags(this.m, p, flags);
    this.head = this.next(this.head);
  }

  /** Fills one packet's slots. */
  putPacket(frags: readonly Uint8Array[], flags = 0): void {
    for (const [i, bytes] of frags.entries()) this.put(bytes, flags | (i + 1 < frags.length ? NS_MOREFRAG : 0));
  }

  /** Writes cur, then head, into the CSB. */
  publish(head = this.head, cur = head): void {
    nm_csb_atok.set.cur(this.m, this.atok, cur);
    nm_csb_atok.set.head(this.m, this.atok, head);
  }

  needKick(on: boolean): void {
    nm_csb_atok.set.appl_need_kick(this.m, this.atok, on ? 1 : 0);
  }

  /** Reads all received slots, without releasing them to the host (`publish` does). */
  take(): Frag[] {
    const out: Frag[] = [];
    for (; this.head !== this.hwtail; this.head = this.next(this.head)) {
      const p = this.slot(this.head);
      const len = netmap_slot.get.len(this.m, p);
      const at = this.buf(this.head);
      out.push({ len, flags: netmap_slot.get.flags(this.m, p), bytes: this.m.u8.slice(at, at + len) });
    }
    return out;
  }

  /** Reads and releases everything, as whole packets. Empty slots are left out. */
  receive(): Uint8Array[][] {
    const packets: Uint8Array[][] = [];
    let frags: Uint8Array[] = [];
    for (const frag of this.take()) {
      if (frag.flags === 0 && frag.len === 0) continue;
      frags.push(frag.bytes);
      if ((frag.flags & NS_MOREFRAG) !== 0) continue;
      packets.push(frags);
      frags = [];
    }
    this.publish();
    return packets;
  }
}

export interface RigPortOptions {
  readonly txSlots?: number;
  readonly rxSlots?: number;
  readonly txRings?: number;
  readonly rxRings?: number;
  readonly bufSize?: number;
  readonly vnetHdrLen?: number;
  /** Whether its region is to lie on huge pages. */
  readonly hugePages?: boolean;
  /** Do not attach and start it. */
  readonly stopped?: boolean;
}

/** A port in a region of its own. */
export interface RigPort {
  readonly port: number;
  readonly id: number;
  readonly region: Region;
  readonly regionOfs: number;
  readonly tx: readonly RigRing[];
  readonly rx: readonly RigRing[];
}

export class Rig {
  readonly arena: Arena;
  readonly space: ArenaSpace;
  readonly m: Views;
  readonly dp: Datapath;
  readonly domain: number;
  readonly ports: RigPort[] = [];

  /** @param start first arena offset used: tests also run above 2 GiB (R3) */
  constructor(start = 4096) {
    this.arena = Arena.create();
    this.space = new ArenaSpace(this.arena, start);
    this.m = this.arena.m;
    this.dp = loadDatapath(this.arena.memory);
    this.domain = this.anonymous(domain.size);
    this.dp.valeInit(this.domain);
  }

  /** Zeroed private pages. */
  anonymous(bytes: number): number {
    const ofs = this.space.alloc(bytes);
    this.arena.mapAnonymous(ofs, Math.ceil(bytes / 4096) * 4096);
    return ofs;
  }

  addPort(options: RigPortOptions = {}): RigPort {
    const { txSlots = 32, rxSlots = 32, txRings = 1, rxRings = 1, bufSize = 2048, vnetHdrLen = 0 } = options;
    const { m, dp } = this;
    const rings = txRings + rxRings;
    const buffers = txRings * txSlots + rxRings * rxSlots;
    const sizes = { interfaces: 1, rings, slots: Math.max(txSlots, rxSlots), buffers, bufSize };
    const region = new Region(
      { name: `rig${this.ports.length}`, ...sizes, hugePages: options.hugePages === true },
      this.ports.length + 1,
    );
    const regionOfs = region.mapInto(this.space);
    const { bufPool } = region.layout;
    const csb = this.anonymous(2 * 4096);
    const privateOfs = this.anonymous(port.size + 64 + rings * kring.size);
    const p = privateOfs;
    port.set.num_tx_rings(m, p, txRings);
    port.set.num_rx_rings(m, p, rxRings);
    port.set.vnet_hdr_len(m, p, vnetHdrLen);
    const krings: number[] = [];
    for (const [i, ringOfs] of region.takeRings(rings).entries()) {
      const isTx = i < txRings;
      const numSlots = isTx ? txSlots : rxSlots;
      const ringId = isTx ? i : i - txRings;
      const dir = isTx ? NR_DIR_TX : NR_DIR_RX;
      writeRing(m, regionOfs, bufPool.ofs, bufSize, { ringOfs, dir, ringId, numSlots }, region.takeBuffers(numSlots));
      const kr = privateOfs + port.size + 64 + i * kring.size;
      kring.set.ring(m, kr, regionOfs + ringOfs);
      kring.set.num_slots(m, kr, numSlots);
      kring.set.buf_base(m, kr, regionOfs + bufPool.ofs);
      kring.set.buf_size(m, kr, bufSize);
      kring.set.num_bufs(m, kr, bufPool.objnum);
      kring.set.atok(m, kr, csb + i * nm_csb_atok.size);
      kring.set.ktoa(m, kr, csb + 4096 + i * nm_csb_ktoa.size);
      kring.set.port(m, kr, p);
      kring.set.dir(m, kr, dir);
      kring.set.ring_id(m, kr, ringId);
      m.u32[(p + (isTx ? port.ofs.tx_rings : port.ofs.rx_rings) + 4 * ringId) >>> 2] = kr;
      dp.krReset(kr);
      nm_csb_atok.set.appl_need_kick(m, csb + i * nm_csb_atok.size, isTx ? 0 : 1);
      nm_csb_ktoa.set.kern_need_kick(m, csb + 4096 + i * nm_csb_ktoa.size, 1);
      krings.push(kr);
    }
    const all = krings.map((kr) => new RigRing(m, kr));
    const id = options.stopped === true ? -1 : dp.valeAttach(this.domain, p);
    if (options.stopped !== true) for (const kr of krings) dp.krStart(kr);
    const made = { port: p, id, region, regionOfs, tx: all.slice(0, txRings), rx: all.slice(txRings) };
    this.ports.push(made);
    return made;
  }

  serve(): number {
    return this.dp.serve(this.domain);
  }

  /** Krings to be signalled since the last call. */
  signals(): number[] {
    const out: number[] = [];
    drainSignals(this.m, this.domain, (kr) => void out.push(kr));
    return out;
  }

  close(): void {
    for (const p of this.ports) p.region.close();
    this.arena.unmap(0, this.arena.bytes);
  }
}

/** A 48-bit address as bytes: 02:00:00:00:hi:lo. */
export const mac = (n: number): Uint8Array => Uint8Array.of(2, 0, 0, 0, (n >>> 8) & 255, n & 255);
export const BROADCAST = new Uint8Array(6).fill(255);

/** An Ethernet frame of `len` bytes with a payload that depends on `tag`. @param hdr bytes in front of it (zeros) */
export function frame(dst: Uint8Array, src: Uint8Array, len = 60, tag = 0, hdr = 0): Uint8Array {
  const f = new Uint8Array(hdr + len);
  for (let i = hdr + 14; i < f.length; i++) f[i] = (tag + i * 7) & 255;
  f.set(dst, hdr);
  f.set(src, hdr + 6);
  f[hdr + 12] = 0x88;
  f[hdr + 13] = 0xb5;
  return f;
}

/** Arena offsets the suites run at. */
export const STARTS = [
  ['low offsets', 4096],
  ['R3: offsets above 2 GiB', 0xa000_0000],
] as const;

/** A switch with a rig port per options; port i is known to all others as mac(i + 1), nothing is counted as pending. */
export function learnedRig(start: number, ports: readonly RigPortOptions[]): Rig {
  const rig = new Rig(start);
  for (const options of ports) rig.addPort(options);
  for (const [i, p] of rig.ports.entries()) {
    const ring = p.tx[0]!;
    ring.put(frame(BROADCAST, mac(i + 1), 60, 0, ports[i]!.vnetHdrLen));
    ring.publish();
    rig.serve();
  }
  for (const p of rig.ports) for (const ring of p.rx) ring.receive();
  rig.signals();
  return rig;
}

/** All packets a port's rx rings lost. */
export function drops(p: RigPort): number {
  const names = ['drop_full', 'drop_stopped', 'drop_dst', 'drop_offload'] as const;
  return p.rx.reduce((sum, ring) => sum + names.reduce((n, name) => n + ring.count(name), 0), 0);
}
