/**
 * The queues of a port of an interface: their memory in the arena, and their being up on the datapath thread; for a port
 * that belongs to no client, also the CSB in which the datapath plays its application (docs/nics.md). Control thread.
 */
import { nic_queue, nm_csb_atok, nm_csb_ktoa } from '../abi/index.ts';
import { type NicLink, nicRingBytes } from '../kloop/index.ts';
import { errnoName, interfaceDriver, interfaceFlags, PAGE_SIZE, XSK_RINGS, type XskRingName } from '../os/index.ts';
import type { PortRecord } from '../ports/index.ts';
import { allRings } from '../ports/index.ts';
import type { NicUse } from './nic-watch.ts';
import { FRAME_OVERHEAD, type Nic, parseInterface } from './nics.ts';
import type { Datapath, Threads } from './threads.ts';

export interface NicPort extends NicUse {
  /** Whether the datapath is the application of its rings. */
  readonly hosted: boolean;
  /** Whether the card reaches the buffers itself, and if not why; undefined where that is no question. */
  readonly zeroCopy: () => ZeroCopy | undefined;
  /** Before the port is released. */
  close(): Promise<void>;
}

export interface ZeroCopy {
  readonly zeroCopy: boolean;
  readonly because?: string;
}

const IFF_UP_RUNNING = 0x41;
/** It writes its VirtIO header in front of each frame, where the buffer before ends. */
const WRITES_BEFORE_FRAMES = 'virtio_net';

function interfaceRunning(name: string): boolean {
  return (interfaceFlags(parseInterface(name).iface) & IFF_UP_RUNNING) === IFF_UP_RUNNING;
}

/** Why zero copy is not to be tried with a native AF_XDP socket. @param pageBytes of the region */
function noZeroCopy(driver: string, pageBytes: number): string | undefined {
  if (pageBytes === PAGE_SIZE) return 'its region lies on ordinary pages (hugePages in the configuration)';
  if (driver !== WRITES_BEFORE_FRAMES) return undefined;
  return `the driver ${WRITES_BEFORE_FRAMES} writes in front of each frame, where the buffer before ends`;
}

/**
 * Connects the rings of a port, which is attached to a domain, with an interface. @throws Error; nothing is kept then
 * @param devices hears of a port whose rings the datapath uses itself @param pageBytes of the pages that its region lies on
 */
export async function connectNic(
  { space, arena, mailbox, index: thread }: Datapath,
  devices: Threads['devices'],
  domain: number,
  record: PortRecord,
  nic: Nic,
  hosted: boolean,
  pageBytes: number,
): Promise<NicPort> {
  const undo: (() => Promise<void> | void)[] = [];
  const reserve = (bytes: number): number => {
    const ofs = space.alloc(bytes);
    undo.push(() => space.free(ofs));
    arena.mapAnonymous(ofs, Math.ceil(bytes / PAGE_SIZE) * PAGE_SIZE);
    return ofs;
  };
  const queues: number[] = [];
  const downAll = async (): Promise<void> => {
    for (const queue of queues.splice(0)) await mailbox.call({ op: 'nic-down', queue });
    nic.close();
  };
  const close = async (): Promise<void> => {
    await downAll();
    for (const action of undo.toReversed()) await action();
  };
  try {
    const slots = Math.max(...allRings(record).map((ring) => ring.numSlots));
    const entries = 2 ** Math.ceil(Math.log2(slots));
    const sizes = nicRingBytes(entries);
    if (hosted) {
      await devices.call({ op: 'host', thread, record });
      undo.push(async () => void (await devices.call({ op: 'unhost', thread, port: record.port })));
      await start(record, nic.vnetHdrLen);
    }
    const at = reserve(nic.links.length * nic_queue.size);
    const driver = interfaceDriver(parseInterface(nic.name).iface);
    const copies = noZeroCopy(driver, pageBytes);
    const sockets: number[] = [];
    const zeroCopy = { oneBuffer: nic.mtu + FRAME_OVERHEAD <= record.bufSize };
    for (const [i, link] of nic.links.entries()) {
      if (link === undefined) continue;
      const queue = at + i * nic_queue.size;
      const rings = Object.fromEntries(XSK_RINGS.map((ring) => [ring, reserve(sizes[ring])]));
      const [tx, rx] = [record.txRings[i]!, record.rxRings[i]!];
      const config = {
        queue,
        domain,
        txKring: tx.kring,
        rxKring: rx.kring,
        hosted,
        umem: { address: record.regionAddr, bytes: record.regionBytes },
        ledger: (hosted ? tx : rx).ledger,
        entries,
        at: rings as Record<XskRingName, number>,
        link: isNative(link) && copies === undefined ? { ...link, zeroCopy } : link,
      };
      await mailbox.call({ op: 'nic-up', queue: config });
      queues.push(queue);
      if (isNative(link)) sockets.push(queue);
    }
    const state = { running: interfaceRunning(nic.name), mtu: nic.mtu, gone: false };
    const how = (): ZeroCopy | undefined => {
      if (sockets.length === 0 || state.gone) return undefined;
      if (copies !== undefined) return { zeroCopy: false, because: copies };
      const refused = sockets.find((queue) => nic_queue.get.zero_copy(arena.m, queue) === 0);
      if (refused === undefined) return { zeroCopy: true };
      const why = errnoName(nic_queue.get.copy_errno(arena.m, refused));
      return { zeroCopy: false, because: `the driver ${driver} refuses zero copy: ${why}` };
    };
    return { nic, state, hosted, zeroCopy: how, gone: downAll, close };
  } catch (e) {
    await close();
    throw e;
  }

  function isNative(link: NicLink): link is Extract<NicLink, { kind: 'xdp' }> {
    return nic.mode === 'native' && link.kind === 'xdp';
  }

  /** Starts the rings with a CSB of our own. */
  async function start({ port }: PortRecord, vnetHdrLen: number): Promise<void> {
    const krings = allRings(record).map((ring) => ring.kring);
    const [atok, ktoa] = [reserve(PAGE_SIZE), reserve(PAGE_SIZE)];
    const rings = krings.map((kring, i) => ({
      kring,
      atok: atok + i * nm_csb_atok.size,
      ktoa: ktoa + i * nm_csb_ktoa.size,
    }));
    for (const ring of rings) nm_csb_ktoa.set.kern_need_kick(arena.m, ring.ktoa, 1);
    const error = await mailbox.call({ op: 'start', port, vnetHdrLen, rings });
    if (error !== 0) throw new Error(`the rings of ${record.name} could not be started (${error})`);
    undo.push(async () => void (await mailbox.call({ op: 'stop', krings })));
    for (const ring of rings) nm_csb_atok.set.appl_need_kick(arena.m, ring.atok, 0);
  }
}
