/**
 * VFIO's ioctls on a PCI device (linux/vfio.h), for drivers in user space. One container per device: its group, its
 * address space for DMA. Needs rights on /dev/vfio/vfio and /dev/vfio/GROUP.
 */
import { closeSync, openSync } from 'node:fs';
import { errno, SysError } from './errno.ts';
import { check, libc, scratch } from './libc.ts';

/** _IO(';', 100 + n) */
const request = (n: number): number => 0x3b64 + n;
const VFIO_GET_API_VERSION = request(0);
const VFIO_CHECK_EXTENSION = request(1);
const VFIO_SET_IOMMU = request(2);
const VFIO_GROUP_GET_STATUS = request(3);
const VFIO_GROUP_SET_CONTAINER = request(4);
const VFIO_GROUP_GET_DEVICE_FD = request(6);
const VFIO_DEVICE_GET_REGION_INFO = request(8);
const VFIO_DEVICE_GET_IRQ_INFO = request(9);
const VFIO_DEVICE_SET_IRQS = request(10);
const VFIO_IOMMU_MAP_DMA = request(13);
const VFIO_IOMMU_UNMAP_DMA = request(14);

const VFIO_TYPE1v2_IOMMU = 3;
const VFIO_GROUP_FLAGS_VIABLE = 1;
const VFIO_DMA_MAP_FLAG_READ_WRITE = 3;
const VFIO_IRQ_SET_DATA_NONE_TRIGGER = 0x21;
const VFIO_IRQ_SET_DATA_EVENTFD_TRIGGER = 0x24;

export interface VfioRegion {
  /** Bytes; 0 if the device has no such region. */
  readonly bytes: number;
  /** Offset in the device's descriptor, for pread, pwrite and mmap. */
  readonly ofs: number;
}

function open(path: string, what: string): number {
  try {
    return openSync(path, 'r+');
  } catch (e) {
    const { errno: code } = e as NodeJS.ErrnoException;
    throw new SysError(`${what}: open ${path}`, code === undefined ? errno.EIO : -code);
  }
}

export class VfioDevice {
  /** Reads, writes and maps the device's regions, at the offsets that `region` gives. */
  readonly fd: number;
  readonly what: string;
  readonly #container: number;
  readonly #group: number;

  /** @param address as in sysfs: 0000:00:03.0 @param group number of its IOMMU group @throws SysError */
  constructor(address: string, group: string) {
    this.what = `PCI device ${address}`;
    this.#container = open('/dev/vfio/vfio', this.what);
    let groupFd = -1;
    try {
      const version = libc.ioctl(this.#container, VFIO_GET_API_VERSION, 0);
      if (version !== 0 || libc.ioctl(this.#container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) !== 1) {
        throw new SysError(
          `${this.what}: the kernel's VFIO has no type 1 IOMMU (module vfio_iommu_type1)`,
          errno.ENOSYS,
        );
      }
      groupFd = open(`/dev/vfio/${group}`, this.what);
      const status = scratch(8);
      status.view.setUint32(0, 8, true);
      this.#ioctl(groupFd, VFIO_GROUP_GET_STATUS, status.address, 'VFIO_GROUP_GET_STATUS');
      if ((status.view.getUint32(4, true) & VFIO_GROUP_FLAGS_VIABLE) === 0) {
        throw new SysError(`${this.what}: another device of IOMMU group ${group} has a kernel driver`, errno.EBUSY);
      }
      const container = scratch(4);
      container.view.setInt32(0, this.#container, true);
      this.#ioctl(groupFd, VFIO_GROUP_SET_CONTAINER, container.address, 'VFIO_GROUP_SET_CONTAINER');
      this.#ioctl(this.#container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU, 'VFIO_SET_IOMMU');
      const bytes = new TextEncoder().encode(`${address}\0`);
      const name = scratch(bytes.length);
      name.u8.set(bytes);
      this.fd = this.#ioctl(groupFd, VFIO_GROUP_GET_DEVICE_FD, name.address, 'VFIO_GROUP_GET_DEVICE_FD');
    } catch (e) {
      if (groupFd >= 0) closeSync(groupFd);
      closeSync(this.#container);
      throw e;
    }
    this.#group = groupFd;
  }

  /** VFIO_DEVICE_GET_REGION_INFO */
  region(index: number): VfioRegion {
    const info = scratch(32);
    info.view.setUint32(0, 32, true);
    info.view.setUint32(8, index, true);
    this.#ioctl(this.fd, VFIO_DEVICE_GET_REGION_INFO, info.address, `VFIO_DEVICE_GET_REGION_INFO ${index}`);
    return { bytes: Number(info.view.getBigUint64(16, true)), ofs: Number(info.view.getBigUint64(24, true)) };
  }

  /** Number of interrupts of an index (VFIO_DEVICE_GET_IRQ_INFO). */
  irqCount(index: number): number {
    const info = scratch(16);
    info.view.setUint32(0, 16, true);
    info.view.setUint32(8, index, true);
    this.#ioctl(this.fd, VFIO_DEVICE_GET_IRQ_INFO, info.address, `VFIO_DEVICE_GET_IRQ_INFO ${index}`);
    return info.view.getUint32(12, true);
  }

  /** Interrupt i of an index signals the eventfd fds[i]; none: the index is disabled (VFIO_DEVICE_SET_IRQS). */
  setIrqs(index: number, fds: readonly number[]): void {
    const set = scratch(20 + 4 * fds.length);
    const flags = fds.length === 0 ? VFIO_IRQ_SET_DATA_NONE_TRIGGER : VFIO_IRQ_SET_DATA_EVENTFD_TRIGGER;
    for (const [i, value] of [set.u8.length, flags, index, 0, fds.length, ...fds].entries()) {
      set.view.setUint32(4 * i, value, true);
    }
    this.#ioctl(this.fd, VFIO_DEVICE_SET_IRQS, set.address, `VFIO_DEVICE_SET_IRQS ${index}`);
  }

  /** Lets the device reach memory of this process, at `iova`. All three are page multiples. The pages are pinned. */
  mapDma(address: number, iova: number, bytes: number): void {
    const map = scratch(32);
    map.view.setUint32(0, 32, true);
    map.view.setUint32(4, VFIO_DMA_MAP_FLAG_READ_WRITE, true);
    for (const [i, value] of [address, iova, bytes].entries()) map.view.setBigUint64(8 + 8 * i, BigInt(value), true);
    this.#ioctl(this.#container, VFIO_IOMMU_MAP_DMA, map.address, `VFIO_IOMMU_MAP_DMA of ${bytes} bytes`);
  }

  unmapDma(iova: number, bytes: number): void {
    const unmap = scratch(24);
    unmap.view.setUint32(0, 24, true);
    unmap.view.setBigUint64(8, BigInt(iova), true);
    unmap.view.setBigUint64(16, BigInt(bytes), true);
    this.#ioctl(this.#container, VFIO_IOMMU_UNMAP_DMA, unmap.address, 'VFIO_IOMMU_UNMAP_DMA');
  }

  close(): void {
    for (const fd of [this.fd, this.#group, this.#container]) closeSync(fd);
  }

  #ioctl(fd: number, code: number, argument: number, attempt: string): number {
    return check(libc.ioctl(fd, code, argument), `${this.what}: ${attempt}`);
  }
}
