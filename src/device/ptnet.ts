/**
 * ptnet: the PCI device that passes a port's rings through (header net/netmap_virt.h, docs/abi.md 2 and 3). Registers in
 * BAR0, an MSI-X vector per ring, the CSB protocol. One instance serves one registration, for one client at a time, and
 * outlives its clients. Owner: the devices thread; the rings themselves belong to the datapath, asked through
 * `RingControl`.
 */
import type { Views } from '../abi/index.ts';
import {
  PCI,
  PTNET_IO as IO,
  PTNET_IO_SIZE,
  PTNET_MSIX,
  PTNET_PCI_CLASS,
  PTNETMAP_F_VNET_HDR,
  PTNETMAP_IO_PCI_BAR,
  PTNETMAP_MSIX_PCI_BAR,
  PTNETMAP_PCI_NETIF_ID,
  PTNETMAP_PCI_VENDOR_ID,
  PTNETMAP_PTCTL_CREATE,
  PTNETMAP_PTCTL_DELETE,
  CSB_PAGE_SIZE,
  nm_csb_atok,
  nm_csb_ktoa,
  VNET_HDR_LENS,
} from '../abi/index.ts';
import type { Arena } from '../memory/index.ts';
import { closeFd, errno, errnoName, eventfd, eventfdSignal, isEventfd, setNonblocking } from '../os/index.ts';
import type { Registration } from '../ports/index.ts';
import { allRings, writeInterface } from '../ports/index.ts';
import {
  DmaTable,
  VfioUserError,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
} from '../vfio-user/index.ts';
import { CsbError, mapCsbPage } from './csb.ts';
import { PciDevice } from './pci-device.ts';
import { type SlotControl, Tenant, type TenantHooks } from './tenant.ts';

/** What the device asks of its datapath thread; each promise settles when it has taken effect there (R18). */
export interface RingControl extends SlotControl {
  /** Starts all rings or none. Resolves to 0 or a positive errno. */
  start(rings: readonly { kring: number; atok: number; ktoa: number }[], vnetHdrLen: number): Promise<number>;
  stop(krings: readonly number[]): Promise<void>;
  setIrqs(irqs: readonly { kring: number; fd: number }[]): Promise<void>;
  addKick(fd: number): Promise<void>;
  removeKick(fd: number): Promise<void>;
}

export interface PtnetConfig {
  readonly registration: Registration;
  /** Accept a client's memory that is not sealed against shrinking (R1). */
  readonly trustUnsealedMemory: boolean;
  /** Most DMA_MAPs held for the client, each with a descriptor (default: enough for a virtual machine). */
  readonly maxDmaMaps?: number;
}

/** Warnings about one client. */
const MAX_WARNINGS = 100;

export interface PtnetHooks extends TenantHooks {
  /** Something that whoever runs the client ought to know. */
  warn(message: string): void;
  /** Attached, running or the header length changed. */
  changed(state: PtnetState): void;
}

export interface PtnetState {
  readonly attached: boolean;
  readonly running: boolean;
  readonly vnetHdrLen: number;
}

type DmaMap = Parameters<PciDevice['dmaMap']>[0];
type DmaUnmap = Parameters<PciDevice['dmaUnmap']>[0];
type SetIrqs = Parameters<PciDevice['setIrqs']>[0];

export class PtnetDevice extends PciDevice {
  readonly registration: Registration;
  /** Its client, from `connected` to `vacated`. */
  readonly tenant: Tenant;
  protected readonly regions;
  readonly #config: PtnetConfig;
  readonly #arena: Arena;
  readonly #m: Views;
  readonly #rings: RingControl;
  readonly #hooks: PtnetHooks;
  readonly #dma: DmaTable;
  /** Eventfd of each vector, -1 for none. */
  readonly #irqs: number[];
  /** Rung for the KICK registers. Nobody else has it, so that writing it never blocks. */
  #kick = -1;
  /** Given to the client, which rings it itself and may do anything with it: never written here (R15). */
  #clientKick = -1;
  #attached = false;
  #running = false;
  #features = 0;
  #vnetHdrLen = 0;
  /** The header of frames that may be in the rings; undefined while these are new. */
  #framesHdrLen: number | undefined;
  #ctlStatus = 0;
  #csb = { atokHigh: 0, ktoaHigh: 0, atok: 0n, ktoa: 0n };
  /** About this client. */
  #warnings = 0;
  /** What `changed` was last called with. */
  #told: PtnetState = { attached: false, running: false, vnetHdrLen: 0 };

  constructor(config: PtnetConfig, arena: Arena, rings: RingControl, hooks: PtnetHooks) {
    const vectors = allRings(config.registration).length;
    super({
      vendorId: PTNETMAP_PCI_VENDOR_ID,
      deviceId: PTNETMAP_PCI_NETIF_ID,
      classCode: PTNET_PCI_CLASS,
      bars: { [PTNETMAP_IO_PCI_BAR]: PCI.BAR_IO, [PTNETMAP_MSIX_PCI_BAR]: 0 },
      vectors,
    });
    const readWrite = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    this.regions = {
      [PTNETMAP_IO_PCI_BAR]: { size: PTNET_IO_SIZE, flags: readWrite },
      [PTNETMAP_MSIX_PCI_BAR]: { size: PTNET_MSIX.SIZE, flags: readWrite },
    };
    this.registration = config.registration;
    this.#config = config;
    this.#arena = arena;
    this.#m = arena.m;
    this.#rings = rings;
    this.#hooks = hooks;
    this.tenant = new Tenant(arena.m, config.registration, rings, hooks);
    this.#dma = new DmaTable(config.maxDmaMaps);
    this.#irqs = Array.from({ length: vectors }, () => -1);
  }

  get state(): PtnetState {
    return { attached: this.#attached, running: this.#running, vnetHdrLen: this.#vnetHdrLen };
  }

  /** Descriptors a datapath thread may be writing to (R15). */
  ownsIrq(fd: number): boolean {
    return this.#irqs.includes(fd);
  }

  /** A client is about to be served: it gets kick eventfds of its own (R14). @throws SysError; nothing is kept then */
  async connected(): Promise<void> {
    try {
      this.#kick = eventfd();
      await this.#rings.addKick(this.#kick);
      this.#clientKick = eventfd();
      await this.#rings.addKick(this.#clientKick);
    } catch (e) {
      await this.#dropKicks();
      throw e;
    }
    this.#warnings = 0;
    this.#attached = true;
    this.tenant.present = true;
    this.#changed();
  }

  /** The datapath lets go of them before they are closed: their numbers may be used again. */
  async #dropKicks(): Promise<void> {
    const fds = [this.#kick, this.#clientKick].filter((fd) => fd >= 0);
    this.#kick = -1;
    this.#clientKick = -1;
    for (const fd of fds) await this.#rings.removeKick(fd).catch(() => undefined);
    for (const fd of fds) closeFd(fd);
  }

  /** KICK registers answered by an eventfd that the client writes itself (GET_REGION_IO_FDS). */
  regionIoFds(index: number): { offset: number; size: number; fd: number }[] {
    if (index !== PTNETMAP_IO_PCI_BAR || this.#clientKick < 0) return [];
    return this.#irqs.map((_, i) => ({ offset: IO.KICK_BASE + 4 * i, size: 4, fd: this.#clientKick }));
  }

  protected readRegister(offset: number): number {
    const r = this.registration;
    const mac = r.mac;
    switch (offset) {
      case IO.PTFEAT:
        return this.#features;
      case IO.PTCTL:
        return this.#ctlStatus;
      case IO.MAC_LO:
        return ((mac[2]! << 24) | (mac[3]! << 16) | (mac[4]! << 8) | mac[5]!) >>> 0;
      case IO.MAC_HI:
        return (mac[0]! << 8) | mac[1]!;
      case IO.NIFP_OFS:
        return r.nifpOfs;
      case IO.NUM_TX_RINGS:
        return r.txRings.length;
      case IO.NUM_RX_RINGS:
        return r.rxRings.length;
      case IO.NUM_TX_SLOTS:
        return r.txRings[0]?.numSlots ?? 0;
      case IO.NUM_RX_SLOTS:
        return r.rxRings[0]?.numSlots ?? 0;
      case IO.VNET_HDR_LEN:
        return this.#vnetHdrLen;
      case IO.HOSTMEMID:
        return r.memId;
      case IO.CSB_GH_BAH:
        return this.#csb.atokHigh;
      case IO.CSB_GH_BAL:
        return Number(this.#csb.atok & 0xffffffffn);
      case IO.CSB_HG_BAH:
        return this.#csb.ktoaHigh;
      case IO.CSB_HG_BAL:
        return Number(this.#csb.ktoa & 0xffffffffn);
      default:
        return 0;
    }
  }

  protected writeRegister(offset: number, value: number): void | Promise<void> {
    if (offset >= IO.KICK_BASE) {
      if ((offset - IO.KICK_BASE) / 4 < this.#irqs.length && this.#kick >= 0) eventfdSignal(this.#kick);
      return;
    }
    switch (offset) {
      case IO.PTFEAT:
        this.#features = this.registration.vnetHdr ? value & PTNETMAP_F_VNET_HDR : 0;
        if (this.#features === 0) this.#vnetHdrLen = 0;
        return this.#changed();
      case IO.VNET_HDR_LEN: {
        // Both are granted or neither: the Linux driver writes 12 whatever PTFEAT said.
        const legal = (VNET_HDR_LENS as readonly number[]).includes(value);
        this.#vnetHdrLen = this.#features !== 0 && legal ? value : 0;
        return this.#changed();
      }
      case IO.PTCTL:
        return this.#control(value);
      case IO.CSB_GH_BAH:
        this.#csb.atokHigh = value;
        return;
      case IO.CSB_HG_BAH:
        this.#csb.ktoaHigh = value;
        return;
      case IO.CSB_GH_BAL:
        this.#csb.atok = (BigInt(this.#csb.atokHigh) << 32n) | BigInt(value);
        return this.#stop();
      case IO.CSB_HG_BAL:
        this.#csb.ktoa = (BigInt(this.#csb.ktoaHigh) << 32n) | BigInt(value);
        return this.#stop();
      default:
        return;
    }
  }

  async #control(command: number): Promise<void> {
    switch (command) {
      case PTNETMAP_PTCTL_CREATE:
        this.#ctlStatus = this.#running ? 0 : await this.#create();
        break;
      case PTNETMAP_PTCTL_DELETE:
        await this.#stop();
        writeInterface(this.#m, this.registration);
        this.#ctlStatus = 0;
        break;
      default:
        this.#ctlStatus = errno.EINVAL;
    }
  }

  /** CREATE: maps the CSB, has the rings started. Returns 0 or a positive errno. */
  async #create(): Promise<number> {
    const { atok, ktoa } = this.#csb;
    if (atok === 0n || ktoa === 0n) {
      this.#warn('CREATE without CSB addresses: refused with ENXIO');
      return errno.ENXIO;
    }
    try {
      if (this.#framesHdrLen !== undefined && this.#framesHdrLen !== this.#vnetHdrLen) await this.#rebuild();
      const { atok: a, ktoa: k } = this.#mapCsb();
      writeInterface(this.#m, this.registration);
      const rings = allRings(this.registration).map((ring, i) => ({
        kring: ring.kring,
        atok: a + i * nm_csb_atok.size,
        ktoa: k + i * nm_csb_ktoa.size,
      }));
      const status = await this.#rings.start(rings, this.#vnetHdrLen);
      if (status === 0) {
        this.#running = true;
        this.#framesHdrLen = this.#vnetHdrLen;
        this.#changed();
        return 0;
      }
      if (status === errno.EINVAL) {
        this.#warn(
          'CREATE refused with EINVAL: kern_need_kick is not 1 in every ktoa entry, so the CSB pages seen here are not ' +
            "the guest's: start QEMU with share=on on its memory backend",
        );
      } else if (status === errno.EIO) {
        this.#warn('CREATE refused with EIO: the switch of this port was stopped by a fault in the datapath (R2)');
      } else {
        this.#warn(`CREATE refused with ${errnoName(status)}`);
      }
      this.#unmapCsb();
      return status;
    } catch (e) {
      this.#unmapCsb();
      if (!(e instanceof CsbError)) throw e;
      this.#warn(`CREATE refused with ${errnoName(e.errno)}: ${e.message}`);
      return e.errno;
    }
  }

  /** Returns the arena addresses of the pages. @throws CsbError */
  #mapCsb(): { atok: number; ktoa: number } {
    const { csbAddr, csbWindow } = this.registration;
    const trusted = this.#config.trustUnsealedMemory;
    const { atok, ktoa } = this.#csb;
    if (atok % BigInt(CSB_PAGE_SIZE) !== 0n || ktoa % BigInt(CSB_PAGE_SIZE) !== 0n) {
      throw new CsbError(errno.EINVAL, 'CSB addresses are not page aligned');
    }
    return {
      atok: mapCsbPage(this.#arena, this.#dma, 'atok', atok, csbAddr[0], csbWindow, trusted),
      ktoa: mapCsbPage(this.#arena, this.#dma, 'ktoa', ktoa, csbAddr[1], csbWindow, trusted),
    };
  }

  #unmapCsb(): void {
    const { csbAddr, csbWindow } = this.registration;
    for (const window of csbAddr) this.#arena.unmap(window, csbWindow);
  }

  /** Stops the rings and lets go of the CSB; positions stay. */
  async #stop(): Promise<void> {
    if (!this.#running) return;
    await this.#rings.stop(allRings(this.registration).map((ring) => ring.kring));
    this.#running = false;
    this.#unmapCsb();
    this.#changed();
  }

  override dmaMap(map: DmaMap): void {
    this.#dma.map(map);
  }

  override async dmaUnmap(unmap: DmaUnmap): Promise<void> {
    const end = unmap.iova + unmap.size;
    const overlaps = (page: bigint): boolean => page < end && page + BigInt(CSB_PAGE_SIZE) > unmap.iova;
    if (this.#running && (overlaps(this.#csb.atok) || overlaps(this.#csb.ktoa))) await this.#stop();
    this.#dma.unmap(unmap.iova, unmap.size);
  }

  /** MSI-X: sets eventfds from `start` on; none given, or count 0, takes them away (docs/abi.md 4.9). */
  override async setIrqs(request: SetIrqs): Promise<void> {
    const { index, start, fds } = request;
    const count = request.count === 0 ? this.#irqs.length - start : request.count;
    try {
      if (index !== VFIO_PCI_MSIX_IRQ_INDEX || start < 0 || count < 0 || start + count > this.#irqs.length) {
        throw new VfioUserError(
          errno.EINVAL,
          `interrupts ${start} + ${count} of index ${index}: this device has ${this.#irqs.length} MSI-X vectors`,
        );
      }
      if (fds.length > 0 && fds.length !== count) {
        throw new VfioUserError(errno.EINVAL, `${fds.length} descriptors for ${count} vectors`);
      }
      for (const [i, fd] of fds.entries()) {
        if (!isEventfd(fd))
          throw new VfioUserError(errno.EINVAL, `vector ${start + i}: its descriptor is no eventfd (R15)`);
        setNonblocking(fd);
      }
    } catch (e) {
      for (const fd of fds) closeFd(fd);
      throw e;
    }
    await this.#replaceIrqs(
      start,
      Array.from({ length: count }, (_, i) => fds[i] ?? -1),
    );
  }

  async #replaceIrqs(start: number, fds: readonly number[]): Promise<void> {
    const old = fds.map((fd, i) => {
      const before = this.#irqs[start + i]!;
      this.#irqs[start + i] = fd;
      return before;
    });
    const rings = allRings(this.registration);
    // The datapath lets go of the old descriptors before they are closed: their numbers may be used again.
    await this.#rings.setIrqs(fds.map((fd, i) => ({ kring: rings[start + i]!.kring, fd })));
    for (const fd of old) closeFd(fd);
  }

  protected override busMasterOff(): Promise<void> {
    return this.#stop();
  }

  async reset(): Promise<void> {
    await this.#resetRegisters();
    await this.#rebuild();
    this.#changed();
  }

  async #resetRegisters(): Promise<void> {
    await this.#stop();
    this.resetConfig();
    this.#features = 0;
    this.#vnetHdrLen = 0;
    this.#ctlStatus = 0;
    this.#csb = { atokHigh: 0, ktoaHigh: 0, atok: 0n, ktoa: 0n };
  }

  /** The connection is over: the rings stop. What they hold stays as it is until `vacated`. */
  async disconnected(): Promise<void> {
    await this.#stop();
    await this.#replaceIrqs(
      0,
      this.#irqs.map(() => -1),
    );
    await this.#dropKicks();
    this.#dma.clear();
    await this.#resetRegisters();
    this.#attached = false;
    this.#changed();
  }

  /**
   * The client is gone and looks at nothing any more: the rings are put right (R19). After `disconnected`; nothing if
   * there was no client since the last time.
   */
  async vacated(): Promise<void> {
    await this.tenant.leave();
    this.#renewed();
  }

  /** New rings and slots from the private record (R19). The rings are stopped. */
  async #rebuild(): Promise<void> {
    await this.tenant.rebuild();
    this.#renewed();
  }

  #renewed(): void {
    writeInterface(this.#m, this.registration);
    this.#framesHdrLen = undefined;
  }

  /** One client does not fill the log. */
  #warn(message: string): void {
    this.#warnings++;
    if (this.#warnings <= MAX_WARNINGS) this.#hooks.warn(message);
    if (this.#warnings === MAX_WARNINGS) this.#hooks.warn('more refused CREATEs of this client are not logged');
  }

  /** Tells what changed; a client that writes the same registers for ever keeps nobody busy with it. */
  #changed(): void {
    const { attached, running, vnetHdrLen } = this.state;
    const last = this.#told;
    if (last.attached === attached && last.running === running && last.vnetHdrLen === vnetHdrLen) return;
    this.#told = { attached, running, vnetHdrLen };
    this.#hooks.changed(this.#told);
  }
}
