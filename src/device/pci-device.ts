/**
 * What ptnet and ptnetmap-memdev have in common as PCI devices behind vfio-user: configuration space, region and
 * interrupt tables, and registers of 32 bits in BAR0 (docs/abi.md 2 and 4). Owner: the devices thread.
 */
import { PCI, PTNET_MSIX, PTNETMAP_MSIX_PCI_BAR } from '../abi/index.ts';
import { closeFd, errno } from '../os/index.ts';
import type { VfioUserDevice } from '../vfio-user/index.ts';
import {
  VfioUserError,
  VFIO_DEVICE_FLAGS_PCI,
  VFIO_DEVICE_FLAGS_RESET,
  VFIO_IRQ_INFO_EVENTFD,
  VFIO_IRQ_INFO_NORESIZE,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_PCI_NUM_IRQS,
  VFIO_PCI_NUM_REGIONS,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
} from '../vfio-user/index.ts';

/** One region (BAR) as GET_REGION_INFO gives it. */
export interface PciRegion {
  readonly size: number;
  readonly flags: number;
  /** Descriptor to map; stays the device's. */
  readonly fd?: number;
  /** Bytes from its start on that can be mapped; what is behind them reads as 0. Default: all. */
  readonly mmapBytes?: number;
}

export interface PciIdentity {
  readonly vendorId: number;
  readonly deviceId: number;
  readonly classCode: number;
  /** Type bits of BAR registers, by BAR index. */
  readonly bars: Readonly<Record<number, number>>;
  /** MSI-X vectors, 0 for none; table and PBA in the BAR given. */
  readonly vectors: number;
}

type DmaMap = Parameters<VfioUserDevice['dmaMap']>[0];
type DmaUnmap = Parameters<VfioUserDevice['dmaUnmap']>[0];
type SetIrqs = Parameters<VfioUserDevice['setIrqs']>[0];

const READ_WRITE = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;

export abstract class PciDevice implements VfioUserDevice {
  readonly numRegions = VFIO_PCI_NUM_REGIONS;
  readonly numIrqs = VFIO_PCI_NUM_IRQS;
  readonly deviceFlags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
  protected readonly config: DataView;
  readonly #vectors: number;
  readonly #identity: PciIdentity;

  constructor(identity: PciIdentity) {
    this.#identity = identity;
    this.#vectors = identity.vectors;
    this.config = new DataView(new ArrayBuffer(PCI.CONFIG_SIZE));
    this.resetConfig();
  }

  /** Configuration space as after power-on. */
  protected resetConfig(): void {
    const { vendorId, deviceId, classCode, bars, vectors } = this.#identity;
    const c = this.config;
    new Uint8Array(c.buffer).fill(0);
    c.setUint16(PCI.VENDOR_ID, vendorId, true);
    c.setUint16(PCI.DEVICE_ID, deviceId, true);
    c.setUint16(PCI.SUBSYSTEM_VENDOR_ID, vendorId, true);
    c.setUint16(PCI.SUBSYSTEM_ID, deviceId, true);
    c.setUint8(PCI.CLASS, classCode & 0xff);
    c.setUint16(PCI.CLASS + 1, classCode >>> 8, true);
    for (const [bar, type] of Object.entries(bars)) c.setUint32(PCI.BAR0 + 4 * Number(bar), type, true);
    if (vectors > 0) {
      c.setUint16(PCI.STATUS, PCI.STATUS_CAP_LIST, true);
      c.setUint8(PCI.CAPABILITY_LIST, PCI.MSIX_CAP);
      c.setUint8(PCI.MSIX_CAP, PCI.CAP_ID_MSIX);
      c.setUint16(PCI.MSIX_CAP + 2, vectors - 1, true);
      c.setUint32(PCI.MSIX_CAP + 4, PTNET_MSIX.TABLE | PTNETMAP_MSIX_PCI_BAR, true);
      c.setUint32(PCI.MSIX_CAP + 8, PTNET_MSIX.PBA | PTNETMAP_MSIX_PCI_BAR, true);
    }
  }

  /** The regions that exist, BARs by index. */
  protected abstract readonly regions: Readonly<Record<number, PciRegion>>;

  regionInfo(index: number): PciRegion {
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) return { size: PCI.CONFIG_SIZE, flags: READ_WRITE };
    return this.regions[index] ?? { size: 0, flags: 0 };
  }

  irqInfo(index: number): { flags: number; count: number } {
    if (index === VFIO_PCI_MSIX_IRQ_INDEX) {
      return { flags: VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE, count: this.#vectors };
    }
    // QEMU asks for ERR (3) and takes EINVAL in silence; it does not ask for the others.
    throw new VfioUserError(errno.EINVAL, `interrupt index ${index} does not exist on this device`);
  }

  regionRead(index: number, offset: number, count: number): Uint8Array | Promise<Uint8Array> {
    const { size } = this.regionInfo(index);
    if (size === 0) throw new VfioUserError(errno.EINVAL, `region ${index} does not exist on this device`);
    if (offset + count > size) {
      throw new VfioUserError(
        errno.EINVAL,
        `read of ${count} bytes at ${offset} leaves region ${index} (${size} bytes)`,
      );
    }
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) return new Uint8Array(this.config.buffer, offset, count).slice();
    if (index !== 0) return this.readMemory(index, offset, count);
    const out = new Uint8Array(count);
    for (let i = 0; i < count; i++) {
      const at = offset + i;
      out[i] = this.readRegister(at & ~3) >>> (8 * (at & 3));
    }
    return out;
  }

  regionWrite(index: number, offset: number, data: Uint8Array): void | Promise<void> {
    const { size } = this.regionInfo(index);
    if (size === 0) throw new VfioUserError(errno.EINVAL, `region ${index} does not exist on this device`);
    if (offset + data.length > size) {
      const what = `write of ${data.length} bytes at ${offset}`;
      throw new VfioUserError(errno.EINVAL, `${what} leaves region ${index} (${size} bytes)`);
    }
    if (index === VFIO_PCI_CONFIG_REGION_INDEX) return this.#writeConfig(offset, data);
    if (index !== 0) return this.writeMemory(index, offset, data);
    // Registers are 32 bits wide and the drivers write them whole; anything else has no meaning on this device.
    if (data.length !== 4 || offset % 4 !== 0) return;
    return this.writeRegister(offset, new DataView(data.buffer, data.byteOffset, 4).getUint32(0, true));
  }

  #writeConfig(offset: number, data: Uint8Array): void | Promise<void> {
    const before = this.config.getUint16(PCI.COMMAND, true);
    for (let i = 0; i < data.length; i++) {
      const at = offset + i;
      const mask = configMask(at, this.#vectors > 0);
      const old = this.config.getUint8(at);
      this.config.setUint8(at, (old & ~mask) | (data[i]! & mask));
    }
    const after = this.config.getUint16(PCI.COMMAND, true);
    if ((before & ~after & PCI.COMMAND_MASTER) !== 0) return this.busMasterOff();
  }

  /** Reads a 32-bit register of BAR0; unknown ones read as 0. */
  protected abstract readRegister(offset: number): number;
  /** Writes a 32-bit register of BAR0; the reply waits for the promise. */
  protected abstract writeRegister(offset: number, value: number): void | Promise<void>;
  /** Memory BARs: QEMU keeps MSI-X tables itself, so nothing is stored. */
  protected readMemory(_index: number, _offset: number, count: number): Uint8Array {
    return new Uint8Array(count);
  }
  protected writeMemory(_index: number, _offset: number, _data: Uint8Array): void {
    // Not kept: see readMemory.
  }
  /** COMMAND's bus master bit went from 1 to 0. */
  protected busMasterOff(): void | Promise<void> {
    // A device that does no DMA has nothing to stop.
  }

  dmaMap(map: DmaMap): void | Promise<void> {
    if (map.fd !== undefined) closeFd(map.fd);
  }
  dmaUnmap(_unmap: DmaUnmap): void | Promise<void> {
    // A device that does no DMA kept nothing.
  }
  setIrqs(request: SetIrqs): void | Promise<void> {
    for (const fd of request.fds) closeFd(fd);
  }
  abstract reset(): void | Promise<void>;
  abstract disconnected(reason: string): void | Promise<void>;
}

/** Bits of a configuration byte that a write changes. BARs stay: QEMU emulates them. */
function configMask(at: number, msix: boolean): number {
  if (at === PCI.COMMAND) return PCI.COMMAND_MASK & 0xff;
  if (at === PCI.COMMAND + 1) return PCI.COMMAND_MASK >>> 8;
  if (at === PCI.INTERRUPT_LINE) return 0xff;
  if (msix && at === PCI.MSIX_CAP + 3) return 0xc0; // enable, function mask
  return 0;
}
