/**
 * A memdev and a ptnet device in this process, behind PciDevice, and a host that does what a test tells it to: registers
 * in a table, a real region, the host's half of the CSB protocol one `turn` at a time. By itself it loops each tx ring's
 * packets back into the rx ring of the same index. Tests break it on purpose, through its public fields.
 */
import { setImmediate } from 'node:timers/promises';
import {
  NR_DIR_RX,
  NR_DIR_TX,
  NS_MOREFRAG,
  NS_RFRAGS_SHIFT,
  netmap_ring,
  netmap_slot,
  nm_csb_atok,
  nm_csb_ktoa,
  PCI,
  PTNET_IO,
  PTNET_MDEV_IO,
  PTNET_MSIX,
  PTNET_PCI_CLASS,
  PTNETMAP_F_VNET_HDR,
  PTNETMAP_MSIX_PCI_BAR,
  PTNETMAP_PCI_CLASS,
  PTNETMAP_PCI_DEVICE_ID,
  PTNETMAP_PCI_NETIF_ID,
  PTNETMAP_PCI_VENDOR_ID,
  PTNETMAP_PTCTL_CREATE,
  PTNETMAP_PTCTL_DELETE,
  type Views,
} from '../../../src/abi/index.ts';
import type { DmaMemory, PciDevice } from '../../../src/guest/pci.ts';
import { Arena, ArenaSpace, Region, writeNetmapIf, writeRing } from '../../../src/memory/index.ts';
import { closeFd, errno, eventfdSignal, memfd } from '../../../src/os/index.ts';

export interface FakeConfig {
  readonly rings?: number;
  readonly slots?: number;
  readonly bufSize?: number;
  readonly vnetHdr?: boolean;
}

export interface FakeRing {
  readonly dir: number;
  readonly id: number;
  /** Index in the CSB, the vectors and the KICK registers. */
  readonly index: number;
  /** Byte offset in the region and arena address of the netmap_ring. */
  readonly ringOfs: number;
  readonly ring: number;
  readonly slots: number;
  hwcur: number;
  hwtail: number;
  rcur: number;
}

const registerName = (table: Readonly<Record<string, number>>, ofs: number): string =>
  Object.entries(table).find(([, at]) => at === ofs)?.[0] ?? `KICK ${(ofs - PTNET_IO.KICK_BASE) / 4}`;

/** One PCI device: configuration space, a table of registers, a log of accesses. */
class FakePci implements PciDevice {
  readonly what: string;
  readonly config = new DataView(new ArrayBuffer(PCI.CONFIG_SIZE));
  /** What a read of each BAR0 register gives. */
  readonly registers = new Map<number, number>();
  readonly names: Readonly<Record<string, number>>;
  readonly gone: Promise<string>;
  hangupFd = -1;
  pollMs?: number;
  /** Every BAR0 access, e.g. "read MAC_HI", "write PTCTL 1". */
  log: string[] = [];
  vectors = 0;
  msix: readonly number[] = [];
  dma: DmaMemory | undefined;
  memory: { fd: number; ofs: number; bytes: number } = { fd: -1, ofs: 0, bytes: 0 };
  onWrite: (ofs: number, value: number) => void = () => undefined;
  onKick: (ring: number) => void = () => undefined;
  end: (reason: string) => void = () => undefined;

  constructor(what: string, deviceId: number, pciClass: number, names: Readonly<Record<string, number>>) {
    this.what = what;
    this.names = names;
    this.gone = new Promise((resolve) => {
      this.end = resolve;
    });
    this.config.setUint16(PCI.VENDOR_ID, PTNETMAP_PCI_VENDOR_ID, true);
    this.config.setUint16(PCI.DEVICE_ID, deviceId, true);
    this.config.setUint32(PCI.REVISION_ID, pciClass * 256, true);
    this.config.setUint32(PCI.BAR0, PCI.BAR_IO, true);
  }

  async configRead(ofs: number, bytes: number): Promise<number> {
    if (bytes === 1) return this.config.getUint8(ofs);
    return bytes === 2 ? this.config.getUint16(ofs, true) : this.config.getUint32(ofs, true);
  }
  async configWrite(ofs: number, bytes: number, value: number): Promise<void> {
    if (bytes === 2) this.config.setUint16(ofs, value, true);
  }
  async read32(ofs: number): Promise<number> {
    this.log.push(`read ${registerName(this.names, ofs)}`);
    return this.registers.get(ofs) ?? 0;
  }
  async write32(ofs: number, value: number): Promise<void> {
    this.log.push(`write ${registerName(this.names, ofs)} ${value}`);
    this.onWrite(ofs, value);
    await setImmediate(); // as a real device does, it answers on a later turn of the loop
  }
  async memoryBar(): Promise<{ fd: number; ofs: number; bytes: number }> {
    return this.memory;
  }
  async dmaAlloc(bytes: number): Promise<DmaMemory> {
    this.dma = { fd: memfd('fake:csb', bytes), ofs: 0, bytes, iova: 0x1_2345_6000 };
    return this.dma;
  }
  async dmaFree(memory: DmaMemory): Promise<void> {
    closeFd(memory.fd);
    this.dma = undefined;
  }
  async msixCount(): Promise<number> {
    return this.vectors;
  }
  async msixEnable(fds: readonly number[]): Promise<void> {
    this.msix = [...fds];
  }
  async msixDisable(): Promise<void> {
    this.msix = [];
  }
  kick(ring: number): void {
    this.onKick(ring);
  }
  async close(): Promise<void> {
    this.end('closed');
  }
}

export class FakeHost {
  readonly region: Region;
  readonly memdev: FakePci;
  readonly ptnet: FakePci;
  readonly space = new ArenaSpace(Arena.create(64 * 2 ** 20));
  readonly m: Views = this.space.arena.m;
  readonly rings: FakeRing[];
  readonly nifp: number;
  /** Arena address of the region, and of the guest's CSB pages while rings run (else -1). */
  readonly base: number;
  csb = -1;
  running = false;
  kicks = 0;
  /** Called at the end of CREATE, before it is answered; its result is PTCTL's answer. */
  afterCreate: () => number = () => 0;
  /** Whether a kick makes the host take a turn at once. */
  turnAtKick = true;
  readonly #config: Required<FakeConfig>;

  constructor(config: FakeConfig = {}) {
    this.#config = { rings: 1, slots: 128, bufSize: 2048, vnetHdr: false, ...config };
    const { rings, slots, bufSize } = this.#config;
    const shape = { name: 'fake', interfaces: 1, rings: 2 * rings, slots, buffers: 2 * rings * slots + 8, bufSize };
    this.region = new Region(shape, 77);
    this.base = this.region.mapInto(this.space);
    const nifpOfs = this.region.takeInterface();
    this.nifp = this.base + nifpOfs;
    const offsets = this.region.takeRings(2 * rings);
    const { ifPool, ringPool, bufPool, size } = this.region.layout;
    this.rings = offsets.map((ringOfs, index) => {
      const dir = index < rings ? NR_DIR_TX : NR_DIR_RX;
      const record = { ringOfs, dir, ringId: index % rings, numSlots: slots };
      writeRing(this.m, this.base, bufPool.ofs, bufSize, record, this.region.takeBuffers(slots));
      const hwtail = dir === NR_DIR_TX ? slots - 1 : 0;
      return { dir, id: index % rings, index, ringOfs, ring: this.base + ringOfs, slots, hwcur: 0, hwtail, rcur: 0 };
    });
    const record = { name: 'fake0', nifpOfs, txRings: offsets.slice(0, rings), rxRings: offsets.slice(rings) };
    writeNetmapIf(this.m, this.base, ifPool.objsz, record);

    this.memdev = new FakePci('fake memdev', PTNETMAP_PCI_DEVICE_ID, PTNETMAP_PCI_CLASS, PTNET_MDEV_IO);
    this.memdev.memory = { fd: this.region.fd, ofs: 0, bytes: size };
    const mdev = { MEMSIZE_LO: size, MEMSIZE_HI: 0, MEMID: this.region.memId };
    for (const [name, value] of Object.entries(mdev)) {
      this.memdev.registers.set(PTNET_MDEV_IO[name as keyof typeof mdev], value);
    }
    for (const [name, pool] of Object.entries({ IF: ifPool, RING: ringPool, BUF: bufPool })) {
      const at = PTNET_MDEV_IO[`${name as 'IF' | 'RING' | 'BUF'}_POOL_OFS`];
      [pool.ofs, pool.objnum, pool.objsz].forEach((v, i) => this.memdev.registers.set(at + 4 * i, v));
    }

    this.ptnet = new FakePci('fake ptnet', PTNETMAP_PCI_NETIF_ID, PTNET_PCI_CLASS, PTNET_IO);
    this.ptnet.vectors = 2 * rings;
    const registers = {
      MAC_HI: 0x0200,
      MAC_LO: 0x0a0b0c0d,
      NIFP_OFS: nifpOfs,
      NUM_TX_RINGS: rings,
      NUM_RX_RINGS: rings,
      NUM_TX_SLOTS: slots,
      NUM_RX_SLOTS: slots,
      HOSTMEMID: this.region.memId,
    };
    for (const [name, value] of Object.entries(registers)) {
      this.ptnet.registers.set(PTNET_IO[name as keyof typeof registers], value);
    }
    const { config: c } = this.ptnet;
    c.setUint16(PCI.STATUS, PCI.STATUS_CAP_LIST, true);
    c.setUint8(PCI.CAPABILITY_LIST, PCI.MSIX_CAP);
    c.setUint8(PCI.MSIX_CAP, PCI.CAP_ID_MSIX);
    c.setUint16(PCI.MSIX_CAP + 2, 2 * rings - 1, true);
    c.setUint32(PCI.MSIX_CAP + 4, PTNET_MSIX.TABLE | PTNETMAP_MSIX_PCI_BAR, true);
    c.setUint32(PCI.MSIX_CAP + 8, PTNET_MSIX.PBA | PTNETMAP_MSIX_PCI_BAR, true);
    this.ptnet.onWrite = (ofs, value) => this.#write(ofs, value);
    this.ptnet.onKick = () => this.#kick();
  }

  get txRings(): FakeRing[] {
    return this.rings.slice(0, this.#config.rings);
  }
  get rxRings(): FakeRing[] {
    return this.rings.slice(this.#config.rings);
  }
  atok(ring: FakeRing): number {
    return this.csb + 64 * ring.index;
  }
  ktoa(ring: FakeRing): number {
    return this.csb + 4096 + 64 * ring.index;
  }

  /** The host's turn: loops what was sent back, takes what was given back, publishes. */
  turn(): void {
    for (const ring of this.rings) ring.rcur = nm_csb_atok.get.cur(this.m, this.atok(ring));
    for (const tx of this.txRings) {
      const head = nm_csb_atok.get.head(this.m, this.atok(tx));
      let packet: Uint8Array[] = [];
      while (head < tx.slots && tx.hwcur !== head) {
        const p = tx.ring + netmap_ring.size + tx.hwcur * netmap_slot.size;
        const buffer = this.#buffer(netmap_slot.get.buf_idx(this.m, p));
        packet.push(this.m.u8.slice(buffer, buffer + netmap_slot.get.len(this.m, p)));
        tx.hwcur = (tx.hwcur + 1) % tx.slots;
        if ((netmap_slot.get.flags(this.m, p) & NS_MOREFRAG) !== 0) continue;
        this.deliver(this.rxRings[tx.id]!, packet);
        packet = [];
      }
      tx.hwtail = (tx.hwcur + tx.slots - 1) % tx.slots;
      this.publish(tx);
    }
    for (const rx of this.rxRings) {
      rx.hwcur = nm_csb_atok.get.head(this.m, this.atok(rx));
      this.publish(rx);
    }
  }

  /** Puts a packet of one or more slots into an rx ring, without publishing it; drops it if there is no room. */
  deliver(rx: FakeRing, packet: readonly Uint8Array[]): void {
    rx.hwcur = nm_csb_atok.get.head(this.m, this.atok(rx));
    if ((rx.hwcur - 1 - rx.hwtail + 2 * rx.slots) % rx.slots < packet.length) return;
    packet.forEach((part, i) => {
      const p = rx.ring + netmap_ring.size + rx.hwtail * netmap_slot.size;
      this.m.u8.set(part, this.#buffer(netmap_slot.get.buf_idx(this.m, p)));
      netmap_slot.set.len(this.m, p, part.length);
      const more = i + 1 < packet.length ? NS_MOREFRAG : 0;
      netmap_slot.set.flags(this.m, p, (packet.length << NS_RFRAGS_SHIFT) | more);
      rx.hwtail = (rx.hwtail + 1) % rx.slots;
    });
  }

  /** hwcur, hwtail, barrier, interrupt if asked for (R6, R13). */
  publish(ring: FakeRing): void {
    const moved = nm_csb_ktoa.get.hwtail(this.m, this.ktoa(ring)) !== ring.hwtail;
    nm_csb_ktoa.set.hwcur(this.m, this.ktoa(ring), ring.hwcur);
    nm_csb_ktoa.set.hwtail(this.m, this.ktoa(ring), ring.hwtail);
    if (moved && nm_csb_atok.get.appl_need_kick(this.m, this.atok(ring)) === 1) this.interrupt(ring);
  }

  interrupt(ring: FakeRing): void {
    const fd = this.ptnet.msix[ring.index];
    if (fd !== undefined) eventfdSignal(fd);
  }

  close(): void {
    this.#unmapCsb();
    this.region.close();
  }

  #buffer(bufIdx: number): number {
    return this.base + this.region.layout.bufPool.ofs + bufIdx * this.region.layout.bufPool.objsz;
  }

  #kick(): void {
    this.kicks++;
    if (this.running && this.turnAtKick) this.turn();
  }

  #write(ofs: number, value: number): void {
    const { registers } = this.ptnet;
    if (ofs >= PTNET_IO.KICK_BASE) return this.#kick();
    switch (ofs) {
      case PTNET_IO.PTFEAT:
        registers.set(ofs, this.#config.vnetHdr ? value & PTNETMAP_F_VNET_HDR : 0);
        break;
      case PTNET_IO.VNET_HDR_LEN:
        registers.set(ofs, this.#config.vnetHdr ? value : 0);
        break;
      case PTNET_IO.PTCTL:
        registers.set(ofs, this.#ptctl(value));
        break;
      case PTNET_IO.CSB_GH_BAL:
      case PTNET_IO.CSB_HG_BAL:
        if (value === 0) this.#unmapCsb();
        break;
    }
  }

  #ptctl(command: number): number {
    if (command === PTNETMAP_PTCTL_DELETE) {
      if (this.running) this.turn();
      this.running = false;
      return 0;
    }
    if (command !== PTNETMAP_PTCTL_CREATE) return errno.EINVAL;
    if (this.ptnet.dma === undefined) return errno.ENXIO;
    if (this.csb < 0) {
      this.csb = this.space.alloc(8192);
      this.space.arena.mapFile(this.csb, 8192, this.ptnet.dma.fd, 0);
    }
    for (const ring of this.rings) {
      nm_csb_atok.set.head(this.m, this.atok(ring), ring.hwcur);
      nm_csb_atok.set.cur(this.m, this.atok(ring), ring.rcur);
      nm_csb_atok.set.appl_need_kick(this.m, this.atok(ring), 1);
      nm_csb_atok.set.sync_flags(this.m, this.atok(ring), 1);
      nm_csb_ktoa.set.hwcur(this.m, this.ktoa(ring), ring.hwcur);
      nm_csb_ktoa.set.hwtail(this.m, this.ktoa(ring), ring.hwtail);
      nm_csb_ktoa.set.kern_need_kick(this.m, this.ktoa(ring), 1);
    }
    this.running = true;
    return this.afterCreate();
  }

  #unmapCsb(): void {
    this.running = false;
    if (this.csb >= 0) this.space.free(this.csb);
    this.csb = -1;
  }
}
