/**
 * The ptnetmap-memdev driver: reads the registers that describe the host's netmap region and maps the region (BAR1) into
 * this process's arena. Mirrors netmap_mem_pt_guest_* (sys/dev/netmap/netmap_mem2.c). All ptnet devices of one virtual
 * machine, or of one application's connection, share one memdev.
 */
import {
  NETMAP_FIRST_BUF,
  PCI,
  PTNET_MDEV_IO,
  PTNETMAP_PCI_CLASS,
  PTNETMAP_PCI_DEVICE_ID,
  PTNETMAP_PCI_VENDOR_ID,
} from '../abi/index.ts';
import type { Pool } from '../memory/index.ts';
import { Arena, ArenaSpace } from '../memory/index.ts';
import { errno, pageBytesOf, SysError } from '../os/index.ts';
import type { PciDevice } from './pci.ts';

let space: ArenaSpace | undefined;

/** The arena of this process's drivers, made at first use: 4 GiB of address space, no memory. */
export function processSpace(): ArenaSpace {
  space ??= new ArenaSpace(Arena.create());
  return space;
}

/** The other side broke the contract of docs/abi.md. */
export function hostError(text: string): SysError {
  return new SysError(`the host ${text}`, errno.EPROTO);
}

const hex = (n: number): string => n.toString(16).padStart(4, '0');

/**
 * Checks that a PCI device is what the driver expects.
 * @throws SysError ENXIO
 */
export async function probe(pci: PciDevice, deviceId: number, pciClass: number, driver: string): Promise<void> {
  const vendor = await pci.configRead(PCI.VENDOR_ID, 2);
  const device = await pci.configRead(PCI.DEVICE_ID, 2);
  const classCode = (await pci.configRead(PCI.REVISION_ID, 4)) >>> 8;
  if (vendor !== PTNETMAP_PCI_VENDOR_ID || device !== deviceId || classCode !== pciClass) {
    throw new SysError(
      `${pci.what} is ${hex(vendor)}:${hex(device)} class ${hex(classCode)}, no ${driver} (${hex(deviceId)})`,
      errno.ENXIO,
    );
  }
}

/** Lets the device use its I/O and memory BARs and reach the driver's memory. */
export async function enableBusMaster(pci: PciDevice): Promise<void> {
  const command = await pci.configRead(PCI.COMMAND, 2);
  await pci.configWrite(PCI.COMMAND, 2, command | PCI.COMMAND_IO | PCI.COMMAND_MEMORY | PCI.COMMAND_MASTER);
}

/** A mapped region and where things are in it. */
export class Memdev {
  readonly pci: PciDevice;
  readonly space: ArenaSpace;
  /** MEMID: what HOSTMEMID of a ptnet device must say. */
  readonly memId: number;
  /** Arena address of the region, and its length in bytes. */
  readonly region: number;
  readonly bytes: number;
  readonly bufPool: Pool;

  private constructor(pci: PciDevice, at: ArenaSpace, memId: number, region: number, bytes: number, bufPool: Pool) {
    this.pci = pci;
    this.space = at;
    this.memId = memId;
    this.region = region;
    this.bytes = bytes;
    this.bufPool = bufPool;
  }

  /** Probes the device, checks what its registers say and maps the region. @throws SysError */
  static async attach(pci: PciDevice, at: ArenaSpace = processSpace()): Promise<Memdev> {
    await probe(pci, PTNETMAP_PCI_DEVICE_ID, PTNETMAP_PCI_CLASS, 'ptnetmap-memdev');
    await enableBusMaster(pci);
    const memId = (await pci.read32(PTNET_MDEV_IO.MEMID)) & 0xffff;
    const hi = await pci.read32(PTNET_MDEV_IO.MEMSIZE_HI);
    const bytes = hi * 2 ** 32 + (await pci.read32(PTNET_MDEV_IO.MEMSIZE_LO));
    const objsz = await pci.read32(PTNET_MDEV_IO.BUF_POOL_OBJSZ);
    const objnum = await pci.read32(PTNET_MDEV_IO.BUF_POOL_OBJNUM);
    const ofs = await pci.read32(PTNET_MDEV_IO.BUF_POOL_OFS);
    if (bytes === 0 || objsz === 0 || objnum <= NETMAP_FIRST_BUF || ofs + objnum * objsz > bytes) {
      throw hostError(
        `says that its region has ${bytes} bytes and ${objnum} buffers of ${objsz} bytes from offset ${ofs} on (${pci.what})`,
      );
    }
    const bar = await pci.memoryBar();
    const page = pageBytesOf(bar.fd);
    const mapped = Math.ceil(bytes / page) * page;
    if (bar.bytes < mapped) {
      throw hostError(`gives ${bar.bytes} bytes of a region that has ${bytes} (${pci.what})`);
    }
    const region = at.alloc(mapped, page);
    try {
      at.arena.mapFile(region, mapped, bar.fd, bar.ofs);
    } catch (e) {
      at.free(region);
      throw e;
    }
    return new Memdev(pci, at, memId, region, bytes, { ofs, objnum, objsz });
  }

  /** Unmaps the region. No ring in it may be used any more. */
  detach(): void {
    this.space.free(this.region);
  }
}
