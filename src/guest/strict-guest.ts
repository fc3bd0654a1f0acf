/**
 * A strict guest: plays FreeBSD's if_ptnet or netmap's Linux driver on a ptnet device and its memdev, access by access, and
 * throws at the first thing that such a driver relies on and that does not hold. Shipped for whoever builds or changes
 * a host: all device tests run against it.
 *
 * Checked: ids, class, BAR kinds and capability; registers that agree with each other, with the memdev and with the rings
 * in the region; features (both or neither of PTFEAT and VNET_HDR_LEN); host rings unbound (ring_ofs 0); distinct buffers
 * in range; PTCTL's answers; positions after CREATE, also after an earlier DELETE; hwcur and hwtail that only go forward,
 * within bounds; rx hwtail on packet boundaries; received slots; memory that the host must leave alone; an interrupt when
 * one was asked for (R13). Not checked: what only time can show.
 *
 * Life: attach -> up -> transmit, receive -> down (-> up …) -> detach. The two traffic paths, `ifnet` (the guest's network
 * stack) and `netmap` (netmap's guest txsync and rxsync), are in strict-traffic.ts.
 */
import {
  CSB_PAGE_SIZE,
  NR_DIR_TX,
  PCI,
  PTNET_IO,
  PTNET_MAX_RINGS,
  PTNET_MDEV_IO,
  PTNET_PCI_CLASS,
  PTNETMAP_F_VNET_HDR,
  PTNETMAP_MSIX_PCI_BAR,
  PTNETMAP_PCI_CLASS,
  PTNETMAP_PCI_DEVICE_ID,
  PTNETMAP_PCI_NETIF_ID,
  PTNETMAP_PTCTL_CREATE,
  PTNETMAP_PTCTL_DELETE,
} from '../abi/index.ts';
import type { ArenaSpace } from '../memory/index.ts';
import { closeFd, eventfd, eventfdRead, watch } from '../os/index.ts';
import { VNET_HDR_WANTED } from './driver.ts';
import { enableBusMaster, probe, processSpace } from './memdev.ts';
import type { DmaMemory, PciDevice } from './pci.ts';
import type { RingRegisters, StrictRegion } from './strict-region.ts';
import { checkBuffers, mapRegion, readRings } from './strict-region.ts';
import type { StrictRing } from './strict-ring.ts';
import { must, violation } from './strict-ring.ts';
import type { Traffic } from './strict-traffic.ts';
import { ifnetTraffic, netmapTraffic } from './strict-traffic.ts';

export interface StrictGuestOptions {
  /** Whose accesses are played. */
  readonly driver: 'freebsd' | 'linux';
  /** The network stack's path (default) or netmap's. */
  readonly mode?: 'ifnet' | 'netmap';
  /** The tunable ptnet_vnet_hdr: ask for a VirtIO network header. Default true, as in the drivers. */
  readonly vnetHdr?: boolean;
  readonly space?: ArenaSpace;
}

/** Longest segment that a network stack hands over, and the slots that it may need. */
const PTNET_MAX_PKT_SIZE = 65536;

/** How long an interrupt may be late behind hwtail, on a busy machine. */
const LATE_MS = 20_000;

/** Registers that both drivers read again whenever the interface goes up (nm_config). */
const CONFIG_REGISTERS = ['NUM_TX_RINGS', 'NUM_RX_RINGS', 'NUM_TX_SLOTS', 'NUM_RX_SLOTS'] as const;

export class StrictGuest {
  readonly options: Required<StrictGuestOptions>;
  readonly ptnet: PciDevice;
  readonly memdev: PciDevice;
  /** Six bytes. */
  mac: readonly number[] = [];
  vnetHdrLen = 0;
  /** Bytes of the VirtIO header that the next `up` asks for: 0, 10, 12. */
  vnetHdrWanted: number;
  /** tx rings, then rx rings; those of the last `up`. */
  rings: readonly StrictRing[] = [];
  /** Eventfd of each ring's vector. */
  irqs: readonly number[] = [];
  running = false;
  #features = 0;
  #registers: RingRegisters = {
    NUM_TX_RINGS: 0,
    NUM_RX_RINGS: 0,
    NUM_TX_SLOTS: 0,
    NUM_RX_SLOTS: 0,
  };
  #nifpOfs = 0;
  #region: StrictRegion | undefined;
  #csb: { dma: DmaMemory; at: number } | undefined;
  #traffic: Traffic | undefined;

  constructor(memdev: PciDevice, ptnet: PciDevice, options: StrictGuestOptions) {
    this.memdev = memdev;
    this.ptnet = ptnet;
    this.options = { mode: 'ifnet', vnetHdr: true, space: processSpace(), ...options };
    this.vnetHdrWanted = this.options.vnetHdr ? VNET_HDR_WANTED : 0;
  }

  /** Both drivers' attach: ptn_memdev_attach, then ptnet_attach (FreeBSD) or ptnet_probe (Linux). */
  async attach(): Promise<void> {
    const { ptnet } = this;
    const memId = await this.#attachMemdev();
    await probe(ptnet, PTNETMAP_PCI_NETIF_ID, PTNET_PCI_CLASS, 'ptnet');
    await this.#bar(ptnet, 0, PCI.BAR_IO);
    await enableBusMaster(ptnet);
    const wanted = this.options.vnetHdr ? PTNETMAP_F_VNET_HDR : 0;
    await ptnet.write32(PTNET_IO.PTFEAT, wanted);
    this.#features = await ptnet.read32(PTNET_IO.PTFEAT);
    must((this.#features & ~wanted) === 0, () => `PTFEAT: wanted ${wanted}, got ${this.#features}`);
    const tx = await ptnet.read32(PTNET_IO.NUM_TX_RINGS);
    const rx = await ptnet.read32(PTNET_IO.NUM_RX_RINGS);
    must(tx > 0 && rx > 0 && tx + rx <= PTNET_MAX_RINGS, () => `${tx} tx and ${rx} rx rings`);
    await this.#allocCsb();
    if (this.options.driver === 'freebsd') {
      await this.#initIrqs(tx + rx);
      await this.#readMac();
    } else {
      await this.#readMac();
      await this.#initIrqs(tx + rx);
    }
    this.#nifpOfs = await ptnet.read32(PTNET_IO.NIFP_OFS);
    const txSlots = await ptnet.read32(PTNET_IO.NUM_TX_SLOTS);
    const rxSlots = await ptnet.read32(PTNET_IO.NUM_RX_SLOTS);
    this.#registers = { NUM_TX_RINGS: tx, NUM_RX_RINGS: rx, NUM_TX_SLOTS: txSlots, NUM_RX_SLOTS: rxSlots };
    const hostMemId = await ptnet.read32(PTNET_IO.HOSTMEMID);
    must(hostMemId === memId, () => `HOSTMEMID ${hostMemId} is not the memdev's MEMID ${memId}`);
    await this.#updateVnetHdr();
  }

  /** The interface goes up: ptnet_init_locked or ptnet_open, with ptnet_nm_register(on). */
  async up(): Promise<void> {
    for (const name of CONFIG_REGISTERS) {
      const value = await this.ptnet.read32(PTNET_IO[name]);
      must(value === this.#registers[name], () => `${name} was ${this.#registers[name]} at attach, is ${value} now`);
    }
    const { space, mode } = this.options;
    this.#region ??= await mapRegion(this.memdev, space);
    const before = { rings: this.rings, vnetHdrLen: this.vnetHdrLen };
    const rings = readRings(space.arena.m, this.#region, this.#nifpOfs, this.#registers, this.#csb!.at);
    checkBuffers(rings, this.rings);
    for (const [i, ring] of rings.entries()) {
      const needKick = i < this.#registers.NUM_TX_RINGS ? 0 : 1;
      if (this.options.driver === 'freebsd') ring.kernNeedKick = true;
      ring.applNeedKick = needKick;
      if (this.options.driver === 'linux') ring.kernNeedKick = true;
    }
    await this.#updateVnetHdr();
    await this.#ptctl(PTNETMAP_PTCTL_CREATE);
    // With headers of another length, what is in the rings is of no use: they are new ones.
    const same = before.vnetHdrLen === this.vnetHdrLen;
    for (const [i, ring] of rings.entries()) ring.syncFromCsb(same ? before.rings[i] : undefined);
    this.rings = rings;
    this.running = true;
    const minTxSpace = Math.floor(PTNET_MAX_PKT_SIZE / this.#region.bufSize) + 2;
    must(mode === 'netmap' || minTxSpace < this.#registers.NUM_TX_SLOTS, () => {
      return `a 64 KiB segment needs ${minTxSpace} free slots, tx rings have ${this.#registers.NUM_TX_SLOTS}`;
    });
    this.#traffic = mode === 'netmap' ? netmapTraffic(this) : ifnetTraffic(this, minTxSpace);
    await this.#traffic.start?.();
  }

  /**
   * Sends frames (each without VirtIO header; one of zeroes is put before it if negotiated) on a tx ring. Returns how many
   * the ring took: fewer when it has no room; then the guest has asked for an interrupt (`interrupted`).
   */
  transmit(frames: readonly Uint8Array[], ring = 0): Promise<number> {
    const header = this.vnetHdrLen;
    const withHeader = frames.map((frame) => Uint8Array.from([...new Uint8Array(header), ...frame]));
    return this.#running().transmit(this.txRing(ring), withHeader);
  }

  /**
   * Takes what an rx ring has received, as the interrupt handler does; VirtIO headers are cut off. At most a driver's
   * budget (512 or so): whoever got any calls again. When it returns nothing, an interrupt has been asked for.
   */
  async receive(ring = 0): Promise<Uint8Array[]> {
    const frames = await this.#running().receive(this.rxRing(ring));
    const header = this.vnetHdrLen;
    for (const frame of frames) must(frame.length > header, () => `a received frame of ${frame.length} bytes`);
    return frames.map((frame) => frame.subarray(header));
  }

  /** The interface goes down: ptnet_stop or ptnet_close, with ptnet_nm_register(off). */
  async down(): Promise<void> {
    await this.#ptctl(PTNETMAP_PTCTL_DELETE);
    this.running = false;
    this.#traffic = undefined;
    // DELETE does one last sync; after that the CSB is the guest's own.
    for (const ring of this.rings) {
      ring.applRead();
      const sent = ring.at.dir !== NR_DIR_TX || ring.hwcur === ring.rhead;
      must(sent, () => `${ring.name}: DELETE left hwcur ${ring.hwcur} behind head ${ring.rhead}`);
    }
  }

  /** Unload: ptnet_detach or ptnet_remove. An interface that is up goes down after the device was shut down. */
  async detach(): Promise<void> {
    const { ptnet } = this;
    await this.#ptctl(PTNETMAP_PTCTL_DELETE);
    for (const name of ['CSB_GH_BAH', 'CSB_GH_BAL', 'CSB_HG_BAH', 'CSB_HG_BAL'] as const) {
      await ptnet.write32(PTNET_IO[name], 0);
    }
    if (this.running) await this.#ptctl(PTNETMAP_PTCTL_DELETE);
    await ptnet.msixDisable();
    await this.#takeCsbBack();
    const { dma } = this.#csb!;
    this.abandon();
    await ptnet.dmaFree(dma);
  }

  /** As a crash would: gives this process's memory back, says nothing to the devices. */
  abandon(): void {
    const { space } = this.options;
    this.running = false;
    this.#traffic = undefined;
    for (const fd of this.irqs) closeFd(fd);
    this.irqs = [];
    if (this.#csb !== undefined) space.free(this.#csb.at);
    this.#csb = undefined;
    if (this.#region !== undefined) space.free(this.#region.at);
    this.#region = undefined;
  }

  /**
   * Waits for an interrupt of any of the rings; one such wait at a time. Returns whether one came.
   * @throws SysError if hwtail moved although an interrupt was asked for and none came (R13)
   */
  async interrupted(rings: readonly StrictRing[], timeoutMs: number): Promise<boolean> {
    const fds = rings.map((ring) => this.irqs[this.indexOf(ring)]!);
    await anyReadable(fds, timeoutMs);
    const came = fds.map((fd) => eventfdRead(fd) > 0n);
    for (const [i, ring] of rings.entries()) {
      if (came[i] || ring.applNeedKick === 0 || !ring.moved) continue;
      // It may be under way.
      await anyReadable([fds[i]!], LATE_MS);
      came[i] = eventfdRead(fds[i]!) > 0n;
      must(came[i]!, () => `${ring.name}: hwtail moved past ${ring.tail}, and no interrupt came`);
    }
    return came.includes(true);
  }

  txRing(ring: number): StrictRing {
    return this.rings[ring]!;
  }

  rxRing(ring: number): StrictRing {
    return this.rings[this.#registers.NUM_TX_RINGS + ring]!;
  }

  /** The CSB, vector and KICK index of a ring. */
  indexOf(ring: StrictRing): number {
    return this.rings.indexOf(ring);
  }

  /** ptnet_kick: a register write, which blocks the virtual CPU until it is answered. */
  async kick(ring: StrictRing, syncFlags: number): Promise<void> {
    ring.syncFlags = syncFlags;
    await this.ptnet.write32(PTNET_IO.KICK_BASE + 4 * this.indexOf(ring), 0);
  }

  #running(): Traffic {
    if (this.#traffic === undefined) throw violation('the interface is down');
    return this.#traffic;
  }

  async #attachMemdev(): Promise<number> {
    await probe(this.memdev, PTNETMAP_PCI_DEVICE_ID, PTNETMAP_PCI_CLASS, 'ptnetmap-memdev');
    await this.#bar(this.memdev, 0, PCI.BAR_IO);
    await this.#bar(this.memdev, 1, 0);
    await enableBusMaster(this.memdev);
    const memId = await this.memdev.read32(PTNET_MDEV_IO.MEMID);
    must(memId > 0 && memId < 0x10000, () => `MEMID ${memId}: 16 bits are used, 0 names netmap's own memory`);
    return memId;
  }

  async #bar(pci: PciDevice, bar: number, kind: number): Promise<void> {
    const value = await pci.configRead(PCI.BAR0 + 4 * bar, 4);
    must((value & PCI.BAR_IO) === kind, () => {
      return `BAR${bar} of ${pci.what} is ${value.toString(16)}, no ${kind === PCI.BAR_IO ? 'I/O' : 'memory'} BAR`;
    });
  }

  async #allocCsb(): Promise<void> {
    const dma = await this.ptnet.dmaAlloc(2 * CSB_PAGE_SIZE);
    const at = this.options.space.alloc(2 * CSB_PAGE_SIZE);
    this.options.space.arena.mapFile(at, 2 * CSB_PAGE_SIZE, dma.fd, dma.ofs);
    this.#csb = { dma, at };
    const ktoa = dma.iova + CSB_PAGE_SIZE;
    await this.ptnet.write32(PTNET_IO.CSB_GH_BAH, Math.floor(dma.iova / 2 ** 32));
    await this.ptnet.write32(PTNET_IO.CSB_GH_BAL, dma.iova % 2 ** 32);
    await this.ptnet.write32(PTNET_IO.CSB_HG_BAH, Math.floor(ktoa / 2 ** 32));
    await this.ptnet.write32(PTNET_IO.CSB_HG_BAL, ktoa % 2 ** 32);
  }

  /** The pages go back to the kernel, which uses them for something else: the host may not touch them any more. */
  async #takeCsbBack(): Promise<void> {
    const { at } = this.#csb!;
    const { m } = this.options.space.arena;
    m.u8.fill(0x5a, at, at + 2 * CSB_PAGE_SIZE);
    await this.ptnet.read32(PTNET_IO.PTCTL);
    const touched = m.u8.subarray(at, at + 2 * CSB_PAGE_SIZE).findIndex((byte) => byte !== 0x5a);
    must(touched < 0, () => `the host wrote to byte ${touched} of the CSB pages after they were taken back`);
  }

  /** ptnet_irqs_init: the capability, then as many vectors as rings. */
  async #initIrqs(rings: number): Promise<void> {
    const { ptnet } = this;
    const status = await ptnet.configRead(PCI.STATUS, 2);
    let cap = (status & PCI.STATUS_CAP_LIST) === 0 ? 0 : await ptnet.configRead(PCI.CAPABILITY_LIST, 1);
    for (let n = 0; cap !== 0 && (await ptnet.configRead(cap, 1)) !== PCI.CAP_ID_MSIX; n++) {
      must(n < 48, () => 'the list of capabilities has no end');
      cap = await ptnet.configRead(cap + 1, 1);
    }
    must(cap !== 0, () => 'no MSI-X capability');
    const size = ((await ptnet.configRead(cap + 2, 2)) & 0x7ff) + 1;
    must(size >= rings, () => `the MSI-X capability has ${size} vectors, there are ${rings} rings`);
    for (const [what, ofs] of [
      ['table', 4],
      ['pending bits', 8],
    ] as const) {
      const bar = (await ptnet.configRead(cap + ofs, 4)) & 7;
      must(bar === PTNETMAP_MSIX_PCI_BAR, () => `the MSI-X ${what} are in BAR${bar}`);
    }
    await this.#bar(ptnet, PTNETMAP_MSIX_PCI_BAR, 0);
    const count = await ptnet.msixCount();
    must(count >= rings, () => `${count} MSI-X vectors for ${rings} rings`);
    this.irqs = Array.from({ length: rings }, () => eventfd());
    await ptnet.msixEnable(this.irqs);
  }

  async #readMac(): Promise<void> {
    const hi = await this.ptnet.read32(PTNET_IO.MAC_HI);
    const lo = await this.ptnet.read32(PTNET_IO.MAC_LO);
    this.mac = [hi >>> 8, hi, lo >>> 24, lo >>> 16, lo >>> 8, lo].map((byte) => byte & 0xff);
    const usable = hi < 0x10000 && (this.mac[0]! & 1) === 0 && this.mac.some((byte) => byte !== 0);
    must(usable, () => `MAC_HI ${hi.toString(16)} MAC_LO ${lo.toString(16)} are no unicast address`);
  }

  /** ptnet_update_vnet_hdr: writes 12 whenever the tunable says so, whatever PTFEAT answered. */
  async #updateVnetHdr(): Promise<void> {
    await this.ptnet.write32(PTNET_IO.VNET_HDR_LEN, this.vnetHdrWanted);
    this.vnetHdrLen = await this.ptnet.read32(PTNET_IO.VNET_HDR_LEN);
    const granted = (this.#features & PTNETMAP_F_VNET_HDR) === 0 ? 0 : this.vnetHdrWanted;
    must(this.vnetHdrLen === granted, () => `VNET_HDR_LEN ${this.vnetHdrLen}, but PTFEAT ${this.#features}`);
  }

  async #ptctl(command: number): Promise<void> {
    await this.ptnet.write32(PTNET_IO.PTCTL, command);
    const result = await this.ptnet.read32(PTNET_IO.PTCTL);
    must(result === 0, () => `PTCTL ${command === PTNETMAP_PTCTL_CREATE ? 'CREATE' : 'DELETE'} answered ${result}`);
  }
}

/** Waits on the event loop until one of the descriptors is readable, or for the time given. */
function anyReadable(fds: readonly number[], timeoutMs: number): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      for (const watcher of watchers) watcher.close();
      resolve();
    };
    const timer = setTimeout(done, timeoutMs);
    const watchers = fds.map((fd) => watch(fd, { readable: true, writable: false }, done));
  });
}
