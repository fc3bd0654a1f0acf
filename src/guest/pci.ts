/**
 * How a driver reaches a PCI device: all that the ptnet driver and the strict guest need, and nothing else. One
 * implementation per transport: `vfio-user-pci.ts` (a local process, over a daemon's socket); others have the same shape
 * inside a virtual machine.
 *
 * Calls that reach the device are asynchronous; `kick` alone is not, because drivers call it per sync.
 */

/** Part of a file that can be mapped. Byte offset and length, both multiples of the page size. */
export interface PciMemory {
  readonly fd: number;
  readonly ofs: number;
  readonly bytes: number;
}

/**
 * Memory of the driver's that the device can reach. `iova`: the address by which the device knows it. It has to be mapped whole, at a
 * multiple of its length.
 */
export interface DmaMemory extends PciMemory {
  readonly iova: number;
}

export interface PciDevice {
  /** Names the device in messages, e.g. "ptnet device /run/ptnet/vm1-1.sock". */
  readonly what: string;

  /** Reads a field of configuration space, little endian. @param bytes 1, 2 or 4 */
  configRead(ofs: number, bytes: number): Promise<number>;
  configWrite(ofs: number, bytes: number, value: number): Promise<void>;

  /** Reads a 32-bit register of BAR0 (unsigned). @param ofs byte offset, a multiple of 4 */
  read32(ofs: number): Promise<number>;
  write32(ofs: number, value: number): Promise<void>;

  /** BAR1 as a file to map; the descriptor stays the transport's. @throws SysError if the device has no memory BAR */
  memoryBar(): Promise<PciMemory>;

  /**
   * Zeroed memory for the device to read and write. Lives until `dmaFree` or `close`.
   * @param bytes a power of two, at least a page; it may get more
   */
  dmaAlloc(bytes: number): Promise<DmaMemory>;
  dmaFree(memory: DmaMemory): Promise<void>;

  /** MSI-X vectors that the device has. */
  msixCount(): Promise<number>;
  /** Makes vector i signal the eventfd `fds[i]` (which stays the caller's). Vectors may share an eventfd. */
  msixEnable(fds: readonly number[]): Promise<void>;
  msixDisable(): Promise<void>;

  /**
   * Writes KICK of a ring, by the cheapest way the transport has; returns without waiting for the device. A device that
   * is gone is reported by `gone`, not here.
   * @param ring tx rings first, then rx rings
   */
  kick(ring: number): void;

  /** A descriptor on which poll(2) reports POLLHUP once the device is gone; -1 if there is none. */
  readonly hangupFd: number;
  /** Settles with the reason when the device is gone: its server died, broke the protocol, or `close` was called. */
  readonly gone: Promise<string>;
  /** Why the server took the device away, if it said so before; asked when the device is gone. */
  removal?: () => string | undefined;

  /** If the transport has no interrupts: how often the driver should look, in ms. */
  readonly pollMs?: number;

  close(): Promise<void>;
}
