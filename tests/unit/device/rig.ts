/**
 * Devices without the rest of the daemon: an arena, a switch, a `Kloop` that no thread runs (the test takes its turns),
 * and clients over the in-memory transport or a socket pair. What a client's memory holds is read and written through
 * its file, as a guest would through its own mapping.
 */
import { readdirSync, readSync, writeSync } from 'node:fs';
import {
  CSB_PAGE_SIZE,
  domain,
  netmap_ring,
  netmap_slot,
  nm_csb_atok,
  nm_csb_ktoa,
  PCI,
  PTNET_IO,
} from '../../../src/abi/index.ts';
import type { PtnetConfig, PtnetState, RingControl } from '../../../src/device/index.ts';
import { MemdevDevice, PtnetDevice } from '../../../src/device/index.ts';
import { askHeld, type Command, Courtesy, CTL, Kloop, type KloopHooks } from '../../../src/kloop/index.ts';
import { type Datapath, loadDatapath } from '../../../src/kloop/datapath.ts';
import { Arena, ArenaSpace, Region } from '../../../src/memory/index.ts';
import { closeFd, F_SEAL_GROW, F_SEAL_SHRINK, memfd, socketPair } from '../../../src/os/index.ts';
import type { PortConfig, PortRing, Registration } from '../../../src/ports/index.ts';
import { createPort, createRegistration, portNeeds } from '../../../src/ports/index.ts';
import {
  memoryTransportPair,
  ServerConnection,
  socketTransport,
  VfioUserClient,
  type VfioUserDevice,
} from '../../../src/vfio-user/index.ts';

/** How many descriptors this process has open. */
export const openFds = (): number => readdirSync('/proc/self/fd').length;

export type Way = 'memory' | 'socket';

/** Bytes of a shared file, as whoever else has it mapped sees them. */
export class SharedFile {
  readonly fd: number;
  readonly bytes: number;

  constructor(fd: number, bytes: number) {
    this.fd = fd;
    this.bytes = bytes;
  }

  read(at: number, bytes: number): Buffer {
    const out = Buffer.alloc(bytes);
    readSync(this.fd, out, 0, bytes, at);
    return out;
  }

  write(at: number, bytes: Uint8Array): void {
    writeSync(this.fd, bytes, 0, bytes.length, at);
  }

  u32(at: number): number {
    return this.read(at, 4).readUInt32LE();
  }

  setU32(at: number, value: number): void {
    const word = Buffer.alloc(4);
    word.writeUInt32LE(value >>> 0);
    this.write(at, word);
  }

  close(): void {
    closeFd(this.fd);
  }
}

/** A client's memory: a file, sealed as QEMU's memory-backend-memfd is. */
export const guestMemory = (bytes: number, seals = F_SEAL_SHRINK | F_SEAL_GROW): SharedFile =>
  new SharedFile(memfd('test:guest', bytes, seals), bytes);

/** The slots and buffers of one ring of a registration, through the region's file. */
export class SharedRing {
  readonly file: SharedFile;
  readonly ring: PortRing;
  readonly #r: Registration;

  constructor(region: Region, registration: Registration, ring: PortRing) {
    this.file = new SharedFile(region.fd, region.layout.size);
    this.ring = ring;
    this.#r = registration;
  }

  slot(i: number): number {
    return this.ring.ringOfs + netmap_ring.size + i * netmap_slot.size;
  }

  bufIdx(i: number): number {
    return this.file.u32(this.slot(i) + netmap_slot.ofs.buf_idx);
  }

  setBufIdx(i: number, idx: number): void {
    this.file.setU32(this.slot(i) + netmap_slot.ofs.buf_idx, idx);
  }

  /** All buffers in the order of the slots. */
  buffers(): number[] {
    return Array.from({ length: this.ring.numSlots }, (_, i) => this.bufIdx(i));
  }

  setLenFlags(i: number, len: number, flags = 0): void {
    this.file.setU32(this.slot(i) + netmap_slot.ofs.len, len | (flags << 16));
  }

  len(i: number): number {
    return this.file.u32(this.slot(i) + netmap_slot.ofs.len) & 0xffff;
  }

  /** Fills slot i. */
  put(i: number, bytes: Uint8Array, flags = 0): void {
    this.file.write(this.#r.bufPoolOfs + this.bufIdx(i) * this.#r.bufSize, bytes);
    this.setLenFlags(i, bytes.length, flags);
  }

  /** Bytes of slot i. */
  get(i: number): Buffer {
    return this.file.read(this.#r.bufPoolOfs + this.bufIdx(i) * this.#r.bufSize, this.len(i));
  }
}

export interface RigPort {
  readonly device: PtnetDevice;
  readonly memdev: MemdevDevice;
  readonly region: Region;
  readonly registration: Registration;
  readonly warnings: string[];
  readonly states: PtnetState[];
}

export interface AddPort {
  readonly name?: string;
  readonly shape?: Partial<PortConfig>;
  /** A second port in another's region. */
  readonly region?: Region;
  /** How many ports a new region is to hold. */
  readonly roomFor?: number;
  readonly bufSize?: number;
  readonly csbWindow?: number;
  readonly vnetHdr?: boolean;
  readonly config?: Partial<PtnetConfig>;
}

export class DeviceRig {
  readonly arena = Arena.create(512 * 2 ** 20);
  readonly space = new ArenaSpace(this.arena);
  readonly ctl = new Int32Array(new SharedArrayBuffer(4 * CTL.LENGTH));
  readonly datapath: Datapath;
  readonly kloop: Kloop;
  readonly domain: number;
  readonly traps: string[] = [];
  readonly ports: RigPort[] = [];
  /** Every command that reached the datapath. */
  readonly commands: Command['op'][] = [];
  /** While set, commands of these kinds are not answered (nor carried out) until `release`. */
  hold: ReadonlySet<Command['op']> = new Set();
  /** What `Kloop.run` calls when CTL.MAIL is set. */
  takeMail: () => void = () => undefined;
  /** What happens while `Kloop.run` yields to a receiver whose ring is full. */
  givenWay: () => void = () => undefined;
  readonly #held: (() => void)[] = [];
  #rebuilt: Promise<void> = Promise.resolve();
  readonly #connections: ServerConnection[] = [];
  readonly #left = new Map<VfioUserDevice, Promise<void>>();

  constructor() {
    this.datapath = { ...loadDatapath(this.arena.memory) };
    const hooks: KloopHooks = {
      takeMail: () => this.takeMail(),
      onNic: () => undefined,
      onTrap: (_domain, error) => void this.traps.push(error),
      onUnwatched: () => undefined,
    };
    const courtesy = new Courtesy(
      () => true,
      () => this.givenWay(),
    );
    this.kloop = new Kloop(this.arena, this.datapath, this.ctl, hooks, courtesy);
    this.domain = this.space.alloc(domain.size);
    this.arena.mapAnonymous(this.domain, domain.size);
    this.kloop.execute({ op: 'domain-add', domain: this.domain });
  }

  release(): void {
    this.hold = new Set();
    for (const go of this.#held.splice(0)) go();
  }

  async #call(command: Command): Promise<number> {
    if (this.hold.has(command.op)) await new Promise<void>((resolve) => this.#held.push(resolve));
    this.commands.push(command.op);
    const result = this.kloop.execute(command);
    if ('error' in result) throw new Error(result.error);
    return result.value;
  }

  addPort(add: AddPort = {}): RigPort {
    const shape = { txRings: 1, rxRings: 1, txSlots: 32, rxSlots: 32, ...add.shape };
    const needs = portNeeds(shape);
    const many = add.roomFor ?? 1;
    const region =
      add.region ??
      new Region(
        {
          name: 'rig',
          interfaces: many,
          rings: needs.rings * many,
          slots: needs.slots,
          buffers: needs.buffers * many,
          bufSize: add.bufSize ?? 2048,
        },
        this.ports.length + 1,
      );
    const n = this.ports.length + 1;
    const record = createPort(this.space, region, add.name ?? `vale0:p${n}`, shape).ports[0]!;
    const registration = createRegistration(
      this.space,
      region,
      record,
      record,
      { mac: [2, 0, 0, 0, 0, n], vnetHdr: add.vnetHdr ?? false },
      add.csbWindow ?? 4096,
    );
    this.kloop.execute({ op: 'port-attach', domain: this.domain, port: registration.port });
    const rings: RingControl = {
      start: (started, vnetHdrLen) => this.#call({ op: 'start', port: registration.port, vnetHdrLen, rings: started }),
      stop: async (krings) => void (await this.#call({ op: 'stop', krings })),
      freeze: async (krings) => void (await this.#call({ op: 'freeze', krings })),
      reset: async (krings) => void (await this.#call({ op: 'reset', krings })),
      held: (asked) => askHeld(asked, (command) => this.#call(command)),
      setIrqs: async (irqs) => void (await this.#call({ op: 'irq', irqs })),
      addKick: async (fd) => void (await this.#call({ op: 'kick-add', fd })),
      removeKick: async (fd) => void (await this.#call({ op: 'kick-remove', fd })),
    };
    const warnings: string[] = [];
    const states: PtnetState[] = [];
    const device: PtnetDevice = new PtnetDevice(
      { registration, trustUnsealedMemory: false, ...add.config },
      this.arena,
      rings,
      {
        neighbours: () =>
          this.ports.filter((p) => p.device !== device && p.region === region).map((p) => p.device.tenant.asNeighbour),
        inTurn: (rebuild) => (this.#rebuilt = this.#rebuilt.then(rebuild, rebuild)),
        warn: (message) => void warnings.push(message),
        changed: (state) => void states.push(state),
      },
    );
    const { memId, fd, layout } = region;
    const memdev = new MemdevDevice({ memId, fd, layout, bar64: true });
    const port = { device, memdev, region, registration, warnings, states };
    this.ports.push(port);
    return port;
  }

  /** Connects a client that has negotiated. */
  async connect(device: VfioUserDevice, way: Way = 'memory'): Promise<VfioUserClient> {
    if (device instanceof PtnetDevice) await device.connected();
    const [a, b] = way === 'memory' ? memoryTransportPair() : socketPair().map((fd) => socketTransport(fd));
    const connection = new ServerConnection(a!, device);
    this.#connections.push(connection);
    const vacated = device instanceof PtnetDevice ? () => device.vacated() : () => undefined;
    this.#left.set(device, Promise.all([this.#left.get(device), connection.closed]).then(vacated));
    const client = new VfioUserClient(b!);
    await client.negotiate();
    return client;
  }

  /** Settles when a device's last client is gone, and what it left has been dealt with. */
  async left(device: VfioUserDevice): Promise<void> {
    await this.#left.get(device);
  }

  /** Settles when every client is gone. */
  async settled(): Promise<void> {
    await Promise.all(this.#left.values());
  }

  async close(): Promise<void> {
    for (const c of this.#connections) c.close('the test is over');
    await this.settled();
    for (const region of new Set(this.ports.map((p) => p.region))) region.close();
    this.kloop.close();
    this.arena.unmap(0, this.arena.bytes);
  }
}

/** Registers and CSB of one device, by a client that makes no check of its own. */
export class RawGuest {
  readonly client: VfioUserClient;
  readonly memory: SharedFile;
  readonly rings: number;

  constructor(client: VfioUserClient, rings = 2, memory = guestMemory(16 * CSB_PAGE_SIZE)) {
    this.client = client;
    this.rings = rings;
    this.memory = memory;
  }

  async read(register: number): Promise<number> {
    return Buffer.from(await this.client.regionRead(0, register, 4)).readUInt32LE();
  }

  async write(register: number, value: number): Promise<void> {
    const data = Buffer.alloc(4);
    data.writeUInt32LE(value >>> 0);
    await this.client.regionWrite(0, register, data);
  }

  async config(offset: number, bytes: number): Promise<number> {
    return Buffer.from(await this.client.regionRead(7, offset, bytes)).readUIntLE(0, bytes);
  }

  async setCommand(value: number): Promise<void> {
    await this.client.regionWrite(7, PCI.COMMAND, Uint8Array.of(value & 0xff, value >>> 8));
  }

  /** Shares the memory at an address. */
  async map(iova = 0x10_0000n, offset = 0n, size = BigInt(this.memory.bytes) - offset): Promise<void> {
    await this.client.dmaMap({ iova, size, fd: this.memory.fd, offset, flags: 3 });
  }

  async setCsb(atok: bigint, ktoa: bigint): Promise<void> {
    await this.write(PTNET_IO.CSB_GH_BAH, Number(atok >> 32n));
    await this.write(PTNET_IO.CSB_GH_BAL, Number(atok & 0xffffffffn));
    await this.write(PTNET_IO.CSB_HG_BAH, Number(ktoa >> 32n));
    await this.write(PTNET_IO.CSB_HG_BAL, Number(ktoa & 0xffffffffn));
  }

  /** What a guest writes before CREATE: wishes for interrupts and kicks. */
  prepare(kernNeedKick = 1): void {
    for (let i = 0; i < this.rings; i++) {
      this.memory.setU32(this.atok(i) + nm_csb_atok.ofs.appl_need_kick, i < this.rings / 2 ? 0 : 1);
      this.memory.setU32(this.ktoa(i) + nm_csb_ktoa.ofs.kern_need_kick, kernNeedKick);
    }
  }

  /** PTCTL, and what it reads back. */
  async control(command: number): Promise<number> {
    await this.write(PTNET_IO.PTCTL, command);
    return this.read(PTNET_IO.PTCTL);
  }

  create(): Promise<number> {
    return this.control(1);
  }

  destroy(): Promise<number> {
    return this.control(2);
  }

  /** Everything up to running rings, with the CSB on the first two pages. */
  async start(): Promise<void> {
    await this.setCommand(7);
    await this.map();
    await this.setCsb(0x10_0000n, 0x10_1000n);
    this.prepare();
    const status = await this.create();
    if (status !== 0) throw new Error(`CREATE: ${status}`);
  }

  /** File offsets of a ring's CSB entries, with the CSB on the first two pages. */
  atok(ring: number): number {
    return ring * nm_csb_atok.size;
  }
  ktoa(ring: number): number {
    return CSB_PAGE_SIZE + ring * nm_csb_ktoa.size;
  }
  head(ring: number): number {
    return this.memory.u32(this.atok(ring) + nm_csb_atok.ofs.head);
  }
  /** cur, then head, as the drivers write them. */
  setHead(ring: number, head: number, cur = head): void {
    this.memory.setU32(this.atok(ring) + nm_csb_atok.ofs.cur, cur);
    this.memory.setU32(this.atok(ring) + nm_csb_atok.ofs.head, head);
  }
  hwcur(ring: number): number {
    return this.memory.u32(this.ktoa(ring) + nm_csb_ktoa.ofs.hwcur);
  }
  hwtail(ring: number): number {
    return this.memory.u32(this.ktoa(ring) + nm_csb_ktoa.ofs.hwtail);
  }
}

export async function withRig(body: (rig: DeviceRig) => Promise<void>): Promise<void> {
  const rig = new DeviceRig();
  try {
    await body(rig);
  } finally {
    rig.release();
    await rig.close();
  }
}
