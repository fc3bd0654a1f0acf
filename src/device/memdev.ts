/**
 * ptnetmap-memdev: the PCI device through which a guest finds and maps a region (header net/netmap_virt.h, docs/abi.md 2).
 * BAR0: read-only registers that describe the region's pools; BAR1: the region itself.
 */
import {
  PCI,
  PTNET_MDEV_IO as IO,
  PTNETMAP_IO_PCI_BAR,
  PTNETMAP_MDEV_IO_SIZE,
  PTNETMAP_MEM_PCI_BAR,
  PTNETMAP_PCI_CLASS,
  PTNETMAP_PCI_DEVICE_ID,
  PTNETMAP_PCI_VENDOR_ID,
} from '../abi/index.ts';
import type { RegionLayout } from '../memory/index.ts';
import {
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
} from '../vfio-user/index.ts';
import { PciDevice } from './pci-device.ts';

/** What a memdev serves. */
export interface MemdevConfig {
  readonly memId: number;
  /** The region's file; stays the region's. */
  readonly fd: number;
  readonly layout: RegionLayout;
  /** Whether BAR1 is a 64-bit BAR. */
  readonly bar64: boolean;
}

export class MemdevDevice extends PciDevice {
  protected readonly regions;
  readonly #registers = new Map<number, number>();

  constructor(config: MemdevConfig) {
    super({
      vendorId: PTNETMAP_PCI_VENDOR_ID,
      deviceId: PTNETMAP_PCI_DEVICE_ID,
      classCode: PTNETMAP_PCI_CLASS,
      bars: {
        [PTNETMAP_IO_PCI_BAR]: PCI.BAR_IO,
        [PTNETMAP_MEM_PCI_BAR]: PCI.BAR_MEM_PREFETCH | (config.bar64 ? PCI.BAR_MEM_64 : 0),
      },
      vectors: 0,
    });
    const { layout, memId, fd } = config;
    const readWrite = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    this.regions = {
      [PTNETMAP_IO_PCI_BAR]: { size: PTNETMAP_MDEV_IO_SIZE, flags: readWrite },
      [PTNETMAP_MEM_PCI_BAR]: {
        size: layout.barSize,
        flags: readWrite | VFIO_REGION_INFO_FLAG_MMAP,
        fd,
        mmapBytes: layout.fileSize,
      },
    };
    const { ifPool, ringPool, bufPool } = layout;
    for (const [register, value] of [
      [IO.MEMSIZE_LO, layout.size % 2 ** 32],
      [IO.MEMSIZE_HI, Math.floor(layout.size / 2 ** 32)],
      [IO.MEMID, memId],
      [IO.IF_POOL_OFS, ifPool.ofs],
      [IO.IF_POOL_OBJNUM, ifPool.objnum],
      [IO.IF_POOL_OBJSZ, ifPool.objsz],
      [IO.RING_POOL_OFS, ringPool.ofs],
      [IO.RING_POOL_OBJNUM, ringPool.objnum],
      [IO.RING_POOL_OBJSZ, ringPool.objsz],
      [IO.BUF_POOL_OFS, bufPool.ofs],
      [IO.BUF_POOL_OBJNUM, bufPool.objnum],
      [IO.BUF_POOL_OBJSZ, bufPool.objsz],
    ] as const) {
      this.#registers.set(register, value);
    }
  }

  protected readRegister(offset: number): number {
    return this.#registers.get(offset) ?? 0;
  }

  protected writeRegister(): void {
    // Read only.
  }

  reset(): void {
    this.resetConfig();
  }

  disconnected(): void {
    this.resetConfig();
  }
}
