/**
 * The ptnet driver, netmap mode: attaches to a ptnet PCI device and its memdev, runs the CSB protocol. Registers are read
 * and written in the order of FreeBSD's ptnet_attach, ptnet_nm_register and ptnet_detach (sys/dev/netmap/if_ptnet.c).
 *
 * Life: attach -> create -> sync of `txRings` and `rxRings` (kring.ts) -> destroy -> detach. Whatever the host says is
 * checked here, once, before it is used as an address.
 */
import {
  CSB_PAGE_SIZE,
  NETMAP_API,
  NR_DIR_RX,
  NR_DIR_TX,
  netmap_if,
  netmap_ring,
  netmap_slot,
  nm_csb_atok,
  PTNET_IO,
  PTNET_MAX_RINGS,
  PTNET_PCI_CLASS,
  PTNETMAP_F_VNET_HDR,
  PTNETMAP_PCI_NETIF_ID,
  PTNETMAP_PTCTL_CREATE,
  PTNETMAP_PTCTL_DELETE,
} from '../abi/index.ts';
import { closeFd, errno, eventfd, SysError } from '../os/index.ts';
import { GuestKring } from './kring.ts';
import type { Memdev } from './memdev.ts';
import { enableBusMaster, hostError, probe } from './memdev.ts';
import type { DmaMemory, PciDevice } from './pci.ts';

/** Bytes of the VirtIO network header that is asked for: struct virtio_net_hdr_mrg_rxbuf. */
export const VNET_HDR_WANTED = 12;

export interface DriverOptions {
  /** Ask for a VirtIO network header in front of every frame (offloads). Default false. */
  readonly vnetHdr?: boolean;
}

/** Both CSB halves, in memory that this process and the device share. */
interface Csb {
  readonly dma: DmaMemory;
  /** Arena addresses of the first nm_csb_atok and nm_csb_ktoa. */
  readonly atok: number;
  readonly ktoa: number;
}

/** A MAC address as text, from the two registers of it. */
function macFromRegisters(hi: number, lo: number): string {
  const digits = (hi & 0xffff).toString(16).padStart(4, '0') + lo.toString(16).padStart(8, '0');
  return digits.replaceAll(/(..)(?!$)/g, '$1:');
}

export class PtnetDriver {
  readonly pci: PciDevice;
  readonly memdev: Memdev;
  readonly mac: string;
  /** ni_name of the netmap_if. */
  name = '';
  /** Arena address of the netmap_if. */
  readonly nifp: number;
  /** Bytes of the VirtIO network header that every frame begins with: 0 or 12. */
  vnetHdrLen = 0;
  txRings: readonly GuestKring[] = [];
  rxRings: readonly GuestKring[] = [];
  /** One eventfd for the vectors of all tx rings, one for those of all rx rings. */
  readonly txEventfd: number;
  readonly rxEventfd: number;
  readonly #numTxRings: number;
  readonly #numRxRings: number;
  readonly #numTxSlots: number;
  readonly #numRxSlots: number;
  readonly #vnetHdrWanted: number;
  readonly #csb: Csb;

  private constructor(
    pci: PciDevice,
    memdev: Memdev,
    csb: Csb,
    eventfds: readonly [number, number],
    registers: {
      mac: string;
      nifpOfs: number;
      txRings: number;
      rxRings: number;
      txSlots: number;
      rxSlots: number;
      vnetHdrWanted: number;
    },
  ) {
    this.pci = pci;
    this.memdev = memdev;
    this.#csb = csb;
    [this.txEventfd, this.rxEventfd] = eventfds;
    this.mac = registers.mac;
    this.nifp = memdev.region + registers.nifpOfs;
    this.#numTxRings = registers.txRings;
    this.#numRxRings = registers.rxRings;
    this.#numTxSlots = registers.txSlots;
    this.#numRxSlots = registers.rxSlots;
    this.#vnetHdrWanted = registers.vnetHdrWanted;
  }

  /**
   * Probes and attaches: ptnet_attach. Rings are not usable before `create`.
   * @throws SysError ENXIO (no such device), EPROTO (the host broke the contract), or what the transport throws
   */
  static async attach(pci: PciDevice, memdev: Memdev, options: DriverOptions = {}): Promise<PtnetDriver> {
    await probe(pci, PTNETMAP_PCI_NETIF_ID, PTNET_PCI_CLASS, 'ptnet');
    await enableBusMaster(pci);
    await pci.write32(PTNET_IO.PTFEAT, options.vnetHdr === true ? PTNETMAP_F_VNET_HDR : 0);
    const ptfeatures = await pci.read32(PTNET_IO.PTFEAT);
    const txRings = await pci.read32(PTNET_IO.NUM_TX_RINGS);
    const rxRings = await pci.read32(PTNET_IO.NUM_RX_RINGS);
    const rings = txRings + rxRings;
    if (rings === 0 || rings > Math.min(PTNET_MAX_RINGS, CSB_PAGE_SIZE / nm_csb_atok.size)) {
      throw hostError(`says ${txRings} tx and ${rxRings} rx rings, 1 to ${PTNET_MAX_RINGS} in all are possible`);
    }
    const csb = await allocCsb(pci, memdev);
    const eventfds: [number, number] = [-1, -1];
    try {
      eventfds[0] = eventfd();
      eventfds[1] = eventfd();
      const vectors = await pci.msixCount();
      if (vectors < rings) throw hostError(`gives ${vectors} MSI-X vectors for ${rings} rings (${pci.what})`);
      await pci.msixEnable(Array.from({ length: rings }, (_, i) => eventfds[i < txRings ? 0 : 1]!));
      const macHi = await pci.read32(PTNET_IO.MAC_HI);
      const macLo = await pci.read32(PTNET_IO.MAC_LO);
      const nifpOfs = await pci.read32(PTNET_IO.NIFP_OFS);
      if (nifpOfs % 8 !== 0 || nifpOfs + netmap_if.size + 8 * (rings + 2) > memdev.bytes) {
        throw hostError(`says that the netmap_if is at ${nifpOfs} in a region of ${memdev.bytes} bytes`);
      }
      const txSlots = await pci.read32(PTNET_IO.NUM_TX_SLOTS);
      const rxSlots = await pci.read32(PTNET_IO.NUM_RX_SLOTS);
      const hostMemId = await pci.read32(PTNET_IO.HOSTMEMID);
      if (hostMemId !== memdev.memId) {
        throw hostError(`says region ${hostMemId} for ${pci.what}, but the memdev has region ${memdev.memId}`);
      }
      const driver = new PtnetDriver(pci, memdev, csb, eventfds, {
        mac: macFromRegisters(macHi, macLo),
        nifpOfs,
        txRings,
        rxRings,
        txSlots,
        rxSlots,
        vnetHdrWanted: (ptfeatures & PTNETMAP_F_VNET_HDR) === 0 ? 0 : VNET_HDR_WANTED,
      });
      await driver.#updateVnetHdr();
      return driver;
    } catch (e) {
      for (const fd of eventfds) closeFd(fd);
      await freeCsb(pci, memdev, csb).catch(() => undefined);
      throw e;
    }
  }

  /** Starts the host's side of all rings and takes their positions from the CSB: ptnet_nm_register(on). */
  async create(): Promise<void> {
    const { m } = this.memdev.space.arena;
    if (netmap_if.get.ni_version(m, this.nifp) !== NETMAP_API) {
      throw hostError(`speaks netmap API ${netmap_if.get.ni_version(m, this.nifp)}, ${NETMAP_API} is known here`);
    }
    const nameBytes = m.u8.slice(this.nifp, this.nifp + netmap_if.fields.ni_name[2]);
    this.name = new TextDecoder().decode(nameBytes).replace(/\0.*$/s, '');
    // ring_ofs[]: tx, host tx (one), rx, host rx
    this.txRings = this.#krings(NR_DIR_TX, 0, this.#numTxRings, this.#numTxSlots);
    const hostTxRings = netmap_if.get.ni_host_tx_rings(m, this.nifp);
    this.rxRings = this.#krings(NR_DIR_RX, this.#numTxRings + hostTxRings, this.#numRxRings, this.#numRxSlots);
    const rings = [...this.txRings, ...this.rxRings];
    for (const ring of rings) ring.prepareCreate();
    await this.#updateVnetHdr();
    await this.#ptctl(PTNETMAP_PTCTL_CREATE, 'CREATE');
    for (const ring of rings) ring.syncFromCsb();
  }

  /** Stops the host's side of all rings: ptnet_nm_register(off). Their positions live on. */
  async destroy(): Promise<void> {
    await this.#ptctl(PTNETMAP_PTCTL_DELETE, 'DELETE');
  }

  /**
   * Stops the rings and gives everything back: ptnet_detach. Does not close the PCI device.
   * @param gone the device is gone already: do only what concerns this process. One that goes meanwhile is no error.
   */
  async detach(gone = false): Promise<void> {
    try {
      await this.#detach(gone);
    } catch (e) {
      if ((e as { errno?: number }).errno !== errno.ECONNRESET) throw e;
    }
  }

  async #detach(gone: boolean): Promise<void> {
    try {
      if (!gone) {
        await this.destroy();
        await writeCsbRegisters(this.pci, 0, 0);
        await this.pci.msixDisable();
      }
    } finally {
      closeFd(this.txEventfd);
      closeFd(this.rxEventfd);
      this.memdev.space.free(this.#csb.atok);
      if (!gone) await this.pci.dmaFree(this.#csb.dma);
    }
  }

  /** Kicks the host for ring i of the given direction. */
  kick(dir: number, ringId: number): void {
    this.pci.kick(dir === NR_DIR_TX ? ringId : this.#numTxRings + ringId);
  }

  #krings(dir: number, firstEntry: number, count: number, numSlots: number): GuestKring[] {
    const { m } = this.memdev.space.arena;
    const { region, bytes, bufPool } = this.memdev;
    const ringBytes = netmap_ring.size + numSlots * netmap_slot.size;
    const first = dir === NR_DIR_TX ? 0 : this.#numTxRings;
    return Array.from({ length: count }, (_, i) => {
      const entry = this.nifp + netmap_if.size + 8 * (firstEntry + i);
      const ring = this.nifp + (entry + 8 <= region + bytes ? Number(BigInt.asIntN(64, m.u64[entry >>> 3]!)) : -1);
      const what = `${dir === NR_DIR_TX ? 'tx' : 'rx'} ring ${i}`;
      if (ring % 8 !== 0 || ring < region || ring + ringBytes > region + bytes || numSlots < 2) {
        throw hostError(`says that ${what} of ${numSlots} slots is at ${ring - region} in a region of ${bytes} bytes`);
      }
      const told = {
        num_slots: netmap_ring.get.num_slots(m, ring),
        nr_buf_size: netmap_ring.get.nr_buf_size(m, ring),
        buf_ofs: Number(netmap_ring.get.buf_ofs(m, ring)),
        dir: netmap_ring.get.dir(m, ring),
      };
      const known = { num_slots: numSlots, nr_buf_size: bufPool.objsz, buf_ofs: bufPool.ofs - (ring - region), dir };
      for (const [field, value] of Object.entries(known)) {
        const got = told[field as keyof typeof told];
        if (got !== value) throw hostError(`says ${field} ${got} in ${what}, its registers say ${value}`);
      }
      const ofs = (first + i) * nm_csb_atok.size;
      return new GuestKring({
        m,
        ring,
        atok: this.#csb.atok + ofs,
        ktoa: this.#csb.ktoa + ofs,
        numSlots,
        dir,
        ringId: i,
      });
    });
  }

  async #updateVnetHdr(): Promise<void> {
    await this.pci.write32(PTNET_IO.VNET_HDR_LEN, this.#vnetHdrWanted);
    const got = await this.pci.read32(PTNET_IO.VNET_HDR_LEN);
    if (got !== this.#vnetHdrWanted) {
      throw hostError(`answers a VNET_HDR_LEN of ${this.#vnetHdrWanted} with ${got} (${this.pci.what})`);
    }
    this.vnetHdrLen = got;
  }

  async #ptctl(command: number, name: string): Promise<void> {
    await this.pci.write32(PTNET_IO.PTCTL, command);
    const result = await this.pci.read32(PTNET_IO.PTCTL);
    if (result !== 0) throw new SysError(`${name} of the rings of ${this.pci.what}`, result);
  }
}

/** The CSB allocation protocol of ptnet_attach: two pages, atok first, told to the device. */
async function allocCsb(pci: PciDevice, memdev: Memdev): Promise<Csb> {
  const { space } = memdev;
  const dma = await pci.dmaAlloc(2 * CSB_PAGE_SIZE);
  let atok = -1;
  try {
    atok = space.alloc(dma.bytes, dma.bytes);
    space.arena.mapFile(atok, dma.bytes, dma.fd, dma.ofs);
    await writeCsbRegisters(pci, dma.iova, dma.iova + CSB_PAGE_SIZE);
  } catch (e) {
    if (atok >= 0) space.free(atok);
    await pci.dmaFree(dma).catch(() => undefined);
    throw e;
  }
  return { dma, atok, ktoa: atok + CSB_PAGE_SIZE };
}

async function freeCsb(pci: PciDevice, memdev: Memdev, csb: Csb): Promise<void> {
  memdev.space.free(csb.atok);
  await writeCsbRegisters(pci, 0, 0);
  await pci.dmaFree(csb.dma);
}

/** BAH first, then BAL; guest-to-host first, then host-to-guest. Zeroes take the CSB away. */
async function writeCsbRegisters(pci: PciDevice, atokIova: number, ktoaIova: number): Promise<void> {
  await pci.write32(PTNET_IO.CSB_GH_BAH, Math.floor(atokIova / 2 ** 32));
  await pci.write32(PTNET_IO.CSB_GH_BAL, atokIova % 2 ** 32);
  await pci.write32(PTNET_IO.CSB_HG_BAH, Math.floor(ktoaIova / 2 ** 32));
  await pci.write32(PTNET_IO.CSB_HG_BAL, ktoaIova % 2 ** 32);
}
