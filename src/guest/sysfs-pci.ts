/**
 * A PCI device through sysfs alone (Linux, root): for a virtual machine without an IOMMU, and for the memdev, which does no DMA and which
 * several processes may use. No interrupts: a driver looks every `pollMs`. The CSB lies in a huge page, whose physical address the device is
 * told; the device goes on using it when the process is killed, until another one starts or the machine is reset (docs/abi.md 5).
 */
import { closeSync, openSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { PCI, PTNET_IO, PTNETMAP_IO_PCI_BAR, PTNETMAP_MEM_PCI_BAR, PTNETMAP_PCI_NETIF_ID } from '../abi/index.ts';
import {
  closeFd,
  errno,
  HUGE_PAGE,
  hugePageFile,
  mapShared,
  physicalAddress,
  SysError,
  unmapShared,
} from '../os/index.ts';
import type { DmaMemory, PciDevice, PciMemory } from './pci.ts';
import { readNumber, writeNumber } from './vfio-pci.ts';

/** How often a driver without interrupts looks for packets. */
const POLL_MS = 1;
const MSIX_TABLE_SIZE_MASK = 0x7ff;

export class SysfsPci implements PciDevice {
  readonly what: string;
  readonly hangupFd = -1;
  readonly pollMs = POLL_MS;
  readonly gone: Promise<string>;
  readonly #folder: string;
  readonly #config: number;
  readonly #registers: number;
  #memory = -1;
  readonly #dma = new Map<DmaMemory, number>();
  readonly #zero = new Uint8Array(4);
  #end: ((reason: string) => void) | undefined;

  /**
   * Enables the device. A ptnet device's rings are stopped: a process before this one may have been killed.
   * @param folder of the device, e.g. /sys/bus/pci/devices/0000:00:03.0
   * @throws SysError EACCES if this is not root
   */
  constructor(folder: string) {
    this.what = `PCI device ${folder.slice(folder.lastIndexOf('/') + 1)} (sysfs)`;
    this.#folder = folder;
    this.gone = new Promise((resolve) => (this.#end = resolve));
    try {
      writeFileSync(join(folder, 'enable'), '1');
      this.#config = openSync(join(folder, 'config'), 'r+');
    } catch (e) {
      throw this.#error(e);
    }
    try {
      const command = readNumber(this.#config, PCI.COMMAND, 2, this.what);
      writeNumber(this.#config, PCI.COMMAND, 2, command | PCI.COMMAND_IO | PCI.COMMAND_MEMORY, this.what);
      this.#registers = openSync(join(folder, `resource${PTNETMAP_IO_PCI_BAR}`), 'r+');
    } catch (e) {
      closeSync(this.#config);
      throw this.#error(e);
    }
    if (readNumber(this.#config, PCI.DEVICE_ID, 2, this.what) === PTNETMAP_PCI_NETIF_ID) {
      for (const ofs of [PTNET_IO.CSB_GH_BAH, PTNET_IO.CSB_GH_BAL, PTNET_IO.CSB_HG_BAH, PTNET_IO.CSB_HG_BAL]) {
        writeNumber(this.#registers, ofs, 4, 0, this.what);
      }
    }
  }

  async configRead(ofs: number, bytes: number): Promise<number> {
    return readNumber(this.#config, ofs, bytes, this.what);
  }

  async configWrite(ofs: number, bytes: number, value: number): Promise<void> {
    writeNumber(this.#config, ofs, bytes, value, this.what);
  }

  async read32(ofs: number): Promise<number> {
    return readNumber(this.#registers, ofs, 4, this.what);
  }

  async write32(ofs: number, value: number): Promise<void> {
    writeNumber(this.#registers, ofs, 4, value, this.what);
  }

  async memoryBar(): Promise<PciMemory> {
    const path = join(this.#folder, `resource${PTNETMAP_MEM_PCI_BAR}`);
    try {
      if (this.#memory < 0) this.#memory = openSync(path, 'r+');
      return { fd: this.#memory, ofs: 0, bytes: statSync(path).size };
    } catch (e) {
      throw this.#error(e);
    }
  }

  async dmaAlloc(bytes: number): Promise<DmaMemory> {
    if (bytes > HUGE_PAGE) throw new SysError(`${this.what}: ${bytes} bytes for the device`, errno.ENOMEM);
    const fd = hugePageFile('ptnet:csb');
    const address = mapShared(fd, HUGE_PAGE);
    const memory = { fd, ofs: 0, bytes: HUGE_PAGE, iova: 0 };
    try {
      memory.iova = physicalAddress(address);
    } catch (e) {
      unmapShared(address, HUGE_PAGE);
      closeFd(fd);
      throw e;
    }
    this.#dma.set(memory, address);
    return memory;
  }

  async dmaFree(memory: DmaMemory): Promise<void> {
    const address = this.#dma.get(memory);
    if (address === undefined) return;
    this.#dma.delete(memory);
    unmapShared(address, memory.bytes);
    closeFd(memory.fd);
  }

  /** Vectors the device has; with sysfs alone nobody gets them. */
  async msixCount(): Promise<number> {
    let ofs = readNumber(this.#config, PCI.CAPABILITY_LIST, 1, this.what);
    // A list can have at most this many members; a broken one may be a circle.
    for (let left = 48; ofs !== 0 && left > 0; left--) {
      if (readNumber(this.#config, ofs, 1, this.what) === PCI.CAP_ID_MSIX) {
        return (readNumber(this.#config, ofs + 2, 2, this.what) & MSIX_TABLE_SIZE_MASK) + 1;
      }
      ofs = readNumber(this.#config, ofs + 1, 1, this.what);
    }
    return 0;
  }

  async msixEnable(): Promise<void> {
    // `pollMs` says that there are none.
  }

  async msixDisable(): Promise<void> {
    // See msixEnable.
  }

  kick(ring: number): void {
    writeSync(this.#registers, this.#zero, 0, 4, PTNET_IO.KICK_BASE + 4 * ring);
  }

  async close(): Promise<void> {
    if (this.#end === undefined) return;
    this.#end(`${this.what} was closed`);
    this.#end = undefined;
    for (const memory of this.#dma.keys()) await this.dmaFree(memory);
    for (const fd of [this.#config, this.#registers, this.#memory]) if (fd >= 0) closeSync(fd);
  }

  #error(cause: unknown): SysError {
    const { code, errno: value, message } = cause as NodeJS.ErrnoException;
    if (value === undefined) throw cause;
    const hint = code === 'EACCES' ? ' (only root may)' : '';
    return new SysError(`${this.what}: ${message}${hint}`, -value);
  }
}
