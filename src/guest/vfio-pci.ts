/**
 * A PCI device through VFIO (Linux, vfio-pci): the way of a driver in a virtual machine's user space. Needs an IOMMU, which for a
 * device of QEMU means a virtual one (docs/abi.md 5; `ptnet vm --iommu`). Interrupts are MSI-X; memory that the device
 * reaches is what was mapped for it, and ends with the process.
 */
import { readSync, writeSync } from 'node:fs';
import { CSB_PAGE_SIZE, PTNET_IO, PTNETMAP_IO_PCI_BAR, PTNETMAP_MEM_PCI_BAR } from '../abi/index.ts';
import { closeFd, errno, mapShared, memfd, SysError, unmapShared, VfioDevice, type VfioRegion } from '../os/index.ts';
import { VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX } from '../vfio-user/index.ts';
import type { DmaMemory, PciDevice, PciMemory } from './pci.ts';

/** Where the driver's memory appears to the device. Below the addresses that x86 keeps for interrupts (0xfee00000). */
const FIRST_IOVA = 0x10_0000;

export class VfioPci implements PciDevice {
  readonly what: string;
  /** VFIO has no sign of a device whose server died: QEMU answers for it. */
  readonly hangupFd = -1;
  readonly gone: Promise<string>;
  readonly #device: VfioDevice;
  readonly #config: VfioRegion;
  readonly #registers: VfioRegion;
  readonly #dma = new Map<DmaMemory, number>();
  readonly #zero = new Uint8Array(4);
  #nextIova = FIRST_IOVA;
  #end: ((reason: string) => void) | undefined;

  /** @param address as in sysfs @param group number of its IOMMU group; the device is bound to vfio-pci @throws SysError */
  constructor(address: string, group: string) {
    this.what = `PCI device ${address} (VFIO)`;
    this.gone = new Promise((resolve) => (this.#end = resolve));
    this.#device = new VfioDevice(address, group);
    try {
      this.#config = this.#device.region(VFIO_PCI_CONFIG_REGION_INDEX);
      this.#registers = this.#device.region(PTNETMAP_IO_PCI_BAR);
    } catch (e) {
      this.#device.close();
      throw e;
    }
  }

  async configRead(ofs: number, bytes: number): Promise<number> {
    return this.#read(this.#config.ofs + ofs, bytes);
  }

  async configWrite(ofs: number, bytes: number, value: number): Promise<void> {
    this.#write(this.#config.ofs + ofs, bytes, value);
  }

  async read32(ofs: number): Promise<number> {
    return this.#read(this.#registers.ofs + ofs, 4);
  }

  async write32(ofs: number, value: number): Promise<void> {
    this.#write(this.#registers.ofs + ofs, 4, value);
  }

  async memoryBar(): Promise<PciMemory> {
    const { bytes, ofs } = this.#device.region(PTNETMAP_MEM_PCI_BAR);
    if (bytes === 0) throw new SysError(`${this.what} has no memory to map`, errno.ENXIO);
    return { fd: this.#device.fd, ofs, bytes };
  }

  async dmaAlloc(bytes: number): Promise<DmaMemory> {
    const memory = { fd: memfd('ptnet:csb', bytes), ofs: 0, bytes, iova: this.#nextIova };
    try {
      // The pages stay pinned after the mapping through which VFIO found them is gone.
      const address = mapShared(memory.fd, bytes);
      this.#dma.set(memory, address);
      this.#device.mapDma(address, memory.iova, bytes);
    } catch (e) {
      this.#forget(memory);
      throw e;
    }
    this.#nextIova += bytes + CSB_PAGE_SIZE;
    return memory;
  }

  async dmaFree(memory: DmaMemory): Promise<void> {
    if (!this.#dma.has(memory)) return;
    try {
      this.#device.unmapDma(memory.iova, memory.bytes);
    } finally {
      this.#forget(memory);
    }
  }

  async msixCount(): Promise<number> {
    return this.#device.irqCount(VFIO_PCI_MSIX_IRQ_INDEX);
  }

  async msixEnable(fds: readonly number[]): Promise<void> {
    this.#device.setIrqs(VFIO_PCI_MSIX_IRQ_INDEX, fds);
  }

  async msixDisable(): Promise<void> {
    this.#device.setIrqs(VFIO_PCI_MSIX_IRQ_INDEX, []);
  }

  kick(ring: number): void {
    writeSync(this.#device.fd, this.#zero, 0, 4, this.#registers.ofs + PTNET_IO.KICK_BASE + 4 * ring);
  }

  async close(): Promise<void> {
    if (this.#end === undefined) return;
    this.#end(`${this.what} was closed`);
    this.#end = undefined;
    this.#device.close();
    for (const memory of this.#dma.keys()) this.#forget(memory);
  }

  #forget(memory: DmaMemory): void {
    const address = this.#dma.get(memory);
    if (address !== undefined) unmapShared(address, memory.bytes);
    this.#dma.delete(memory);
    closeFd(memory.fd);
  }

  #read(at: number, bytes: number): number {
    return readNumber(this.#device.fd, at, bytes, this.what);
  }

  #write(at: number, bytes: number, value: number): void {
    writeNumber(this.#device.fd, at, bytes, value, this.what);
  }
}

/** Reads a little-endian number by one pread. @param bytes 1, 2 or 4 */
export function readNumber(fd: number, at: number, bytes: number, what: string): number {
  const data = Buffer.alloc(4);
  const got = readSync(fd, data, 0, bytes, at);
  if (got !== bytes) throw new SysError(`${what}: read ${bytes} bytes at ${at}`, errno.EIO);
  return data.readUInt32LE(0);
}

/** Writes a little-endian number by one pwrite. */
export function writeNumber(fd: number, at: number, bytes: number, value: number, what: string): void {
  const data = Buffer.alloc(4);
  data.writeUInt32LE(value >>> 0, 0);
  if (writeSync(fd, data, 0, bytes, at) !== bytes)
    throw new SysError(`${what}: write ${bytes} bytes at ${at}`, errno.EIO);
}
