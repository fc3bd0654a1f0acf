/**
 * A PCI device over a vfio-user connection, as a local process reaches it (docs/abi.md 4): registers are messages,
 * memory is descriptors that come and go with them, a kick is a write to an eventfd that the server gave.
 */
import { CSB_PAGE_SIZE, PTNET_IO, PTNET_MAX_RINGS, PTNETMAP_IO_PCI_BAR, PTNETMAP_MEM_PCI_BAR } from '../abi/index.ts';
import {
  closeFd,
  connectUnix,
  errno,
  eventfdSignal,
  F_SEAL_SHRINK,
  fileSize,
  getSeals,
  memfd,
  SysError,
} from '../os/index.ts';
import {
  socketTransport,
  VFIO_PCI_CONFIG_REGION_INDEX,
  VFIO_PCI_MSIX_IRQ_INDEX,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  VfioUserClient,
} from '../vfio-user/index.ts';
import type { DmaMemory, PciDevice, PciMemory } from './pci.ts';

/** Where the driver's memory appears to the device; every allocation has an address of its own. */
const FIRST_IOVA = 0x10_0000;

/**
 * Connects to a device's socket and takes the device in its reset state.
 * @param socket path, or a connected descriptor, which this takes over @param what names the device in messages
 * @throws SysError
 */
export async function connectVfioUserPci(socket: string | number, what: string): Promise<PciDevice> {
  const fd = typeof socket === 'string' ? connectUnix(socket) : socket;
  const client = new VfioUserClient(socketTransport(fd));
  return openVfioUserPci(client, typeof socket === 'string' ? `${what} (${socket})` : what, fd);
}

/** The same on a connection that exists. @param hangupFd the socket, if there is one */
export async function openVfioUserPci(client: VfioUserClient, what: string, hangupFd = -1): Promise<PciDevice> {
  try {
    await client.negotiate();
    await client.reset();
    return new VfioUserPci(client, what, hangupFd, await kickFds(client));
  } catch (e) {
    client.close();
    throw e;
  }
}

/** The eventfd of each ring's KICK register; -1 where the server gives none. The caller owns each one once. */
async function kickFds(client: VfioUserClient): Promise<number[]> {
  const fds = Array.from({ length: PTNET_MAX_RINGS }, () => -1);
  // A server need not know the command, and a memdev has nothing to kick.
  for (const io of await client.regionIoFds(PTNETMAP_IO_PCI_BAR).catch(() => [])) {
    for (let ring = 0; ring < PTNET_MAX_RINGS; ring++) {
      const register = PTNET_IO.KICK_BASE + 4 * ring;
      if (io.offset <= register && register < io.offset + io.size) fds[ring] = io.fd;
    }
  }
  return fds;
}

class VfioUserPci implements PciDevice {
  readonly what: string;
  readonly hangupFd: number;
  readonly gone: Promise<string>;
  readonly #client: VfioUserClient;
  readonly #kickFds: readonly number[];
  readonly #zero = new Uint8Array(4);
  #barFds: readonly number[] = [];
  readonly #dmaFds = new Set<number>();
  #nextIova = FIRST_IOVA;
  #open = true;

  constructor(client: VfioUserClient, what: string, hangupFd: number, kicks: readonly number[]) {
    this.what = what;
    this.hangupFd = hangupFd;
    this.gone = client.closed;
    this.#client = client;
    this.#kickFds = kicks;
  }

  configRead(ofs: number, bytes: number): Promise<number> {
    return this.#read(VFIO_PCI_CONFIG_REGION_INDEX, ofs, bytes);
  }

  configWrite(ofs: number, bytes: number, value: number): Promise<void> {
    return this.#write(VFIO_PCI_CONFIG_REGION_INDEX, ofs, bytes, value);
  }

  read32(ofs: number): Promise<number> {
    return this.#read(PTNETMAP_IO_PCI_BAR, ofs, 4);
  }

  write32(ofs: number, value: number): Promise<void> {
    return this.#write(PTNETMAP_IO_PCI_BAR, ofs, 4, value);
  }

  async memoryBar(): Promise<PciMemory> {
    const info = await this.#client.regionInfo(PTNETMAP_MEM_PCI_BAR);
    for (const fd of this.#barFds) closeFd(fd);
    this.#barFds = info.fds;
    const fd = info.fds[0];
    if (info.size === 0n || fd === undefined) throw new SysError(`${this.what} has no memory to map`, errno.ENXIO);
    // What is mapped must stay there, or an access would kill this process.
    const ofs = Number(info.offset);
    const bytes = Math.min(Number(info.size), fileSize(fd) - ofs);
    if ((getSeals(fd) & F_SEAL_SHRINK) === 0) {
      throw new SysError(`${this.what}: its memory is not sealed against shrinking`, errno.EPROTO);
    }
    return { fd, ofs, bytes };
  }

  async dmaAlloc(bytes: number): Promise<DmaMemory> {
    const memory = { fd: memfd('ptnet:csb', bytes), ofs: 0, bytes, iova: this.#nextIova };
    this.#nextIova += bytes + CSB_PAGE_SIZE;
    this.#dmaFds.add(memory.fd);
    await this.#client.dmaMap({
      iova: BigInt(memory.iova),
      size: BigInt(bytes),
      fd: memory.fd,
      flags: VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
    });
    return memory;
  }

  async dmaFree(memory: DmaMemory): Promise<void> {
    await this.#client.dmaUnmap({ iova: BigInt(memory.iova), size: BigInt(memory.bytes) });
    if (this.#dmaFds.delete(memory.fd)) closeFd(memory.fd);
  }

  async msixCount(): Promise<number> {
    return (await this.#client.irqInfo(VFIO_PCI_MSIX_IRQ_INDEX)).count;
  }

  async msixEnable(fds: readonly number[]): Promise<void> {
    await this.#client.setIrqs({ index: VFIO_PCI_MSIX_IRQ_INDEX, start: 0, fds });
  }

  async msixDisable(): Promise<void> {
    await this.#client.disableIrqs(VFIO_PCI_MSIX_IRQ_INDEX);
  }

  kick(ring: number): void {
    const fd = this.#kickFds[ring]!;
    if (fd >= 0) eventfdSignal(fd);
    else
      void this.#client
        .regionWrite(PTNETMAP_IO_PCI_BAR, PTNET_IO.KICK_BASE + 4 * ring, this.#zero)
        .catch(() => undefined);
  }

  async close(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    this.#client.close();
    for (const fd of new Set([...this.#kickFds, ...this.#barFds, ...this.#dmaFds])) closeFd(fd);
  }

  async #read(region: number, ofs: number, bytes: number): Promise<number> {
    const data = await this.#client.regionRead(region, ofs, bytes);
    let value = 0;
    for (let i = bytes - 1; i >= 0; i--) value = value * 256 + data[i]!;
    return value;
  }

  async #write(region: number, ofs: number, bytes: number, value: number): Promise<void> {
    const data = Uint8Array.from({ length: bytes }, (_, i) => Math.floor(value / 256 ** i) % 256);
    await this.#client.regionWrite(region, ofs, data);
  }
}
