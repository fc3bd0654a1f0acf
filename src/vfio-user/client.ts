/**
 * The client's side of one connection, as QEMU is one: the driver of local processes and the tests stand on it. Requests
 * may be made without waiting for earlier ones; the server answers in order. A reply that breaks the protocol, and a
 * reply that does not come in time, end the connection; the end rejects every request that waits.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { closeFd, connectUnix, errno, SysError } from '../os/index.ts';
import { type ClientReply, ClientRequests, MAX_MSG_FDS } from './client-requests.ts';
import {
  BODY,
  type Capabilities,
  formatCapabilities,
  MAX_VERSION_DATA,
  type Message,
  newMessage,
  parseCapabilities,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
  VFIO_USER_DEFAULT_MAX_MSG_FDS,
  VFIO_USER_DEVICE_GET_INFO,
  VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_DEVICE_GET_REGION_INFO,
  VFIO_USER_DEVICE_GET_REGION_IO_FDS,
  VFIO_USER_DEVICE_RESET,
  VFIO_USER_DEVICE_SET_IRQS,
  VFIO_USER_DMA_MAP,
  VFIO_USER_DMA_UNMAP,
  VFIO_USER_IO_FD_TYPE_IOEVENTFD,
  VFIO_USER_MAJOR,
  VFIO_USER_MINOR,
  VFIO_USER_REGION_READ,
  VFIO_USER_REGION_WRITE,
  VFIO_USER_VERSION,
  VfioUserError,
  vfio_irq_info,
  vfio_irq_set,
  vfio_region_info,
  vfio_user_device_info,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
  vfio_user_region_access,
  vfio_user_region_io_fds,
  vfio_user_sub_region_ioeventfd,
  vfio_user_version,
} from './messages.ts';
import type { RegionIoFd } from './requests.ts';
import { StreamError } from './stream.ts';
import { socketTransport, type Transport } from './transport.ts';

export interface ClientOptions {
  /** How long a reply may take, milliseconds (default 10000). */
  readonly timeoutMs?: number;
}

/** Sub-regions asked for at first; a second request has the room that the server names. */
const IO_FDS_ROOM = 64;

export class VfioUserClient {
  /** Resolves with the reason when the connection is over. Never rejects. */
  readonly closed: Promise<string>;
  readonly #requests: ClientRequests;
  #peer: Capabilities = {
    maxMsgFds: VFIO_USER_DEFAULT_MAX_MSG_FDS,
    maxDataXferSize: VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE,
  };

  /** The transport is the client's from now on. */
  constructor(transport: Transport, opts: ClientOptions = {}) {
    this.#requests = new ClientRequests(transport, opts.timeoutMs ?? 10_000);
    this.closed = this.#requests.closed;
  }

  /** Connects to a server's socket; waits if more clients than its queue holds are connecting. @throws SysError */
  static async connect(path: string, opts: ClientOptions = {}): Promise<VfioUserClient> {
    for (let left = 100; ; left--) {
      try {
        return new VfioUserClient(socketTransport(connectUnix(path), MAX_MSG_FDS), opts);
      } catch (e) {
        if (!(e instanceof SysError) || e.errno !== errno.EAGAIN || left === 0) throw e;
      }
      await delay(10);
    }
  }

  /** Must be the first request. Returns what the server can receive; longer calls are cut to it or refused here. */
  async negotiate(): Promise<Capabilities> {
    const own = { maxMsgFds: MAX_MSG_FDS, maxDataXferSize: VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE };
    const caps = formatCapabilities(own, MAX_VERSION_DATA);
    const message = newMessage(vfio_user_version.size + caps.length);
    vfio_user_version.set.major(message.m, BODY, VFIO_USER_MAJOR);
    vfio_user_version.set.minor(message.m, BODY, VFIO_USER_MINOR);
    message.u8.set(caps, BODY + vfio_user_version.size);
    const r = await this.#requests.send(VFIO_USER_VERSION, message, {
      maxBody: vfio_user_version.size + MAX_VERSION_DATA,
    });
    return this.#requests.checked(r, () => {
      atLeast(r, vfio_user_version.size);
      const major = vfio_user_version.get.major(r.message.m, BODY);
      if (major !== VFIO_USER_MAJOR) throw new StreamError(`the server speaks version ${major}`);
      this.#peer = parseCapabilities(r.message.u8.subarray(BODY + vfio_user_version.size));
      return this.#peer;
    });
  }

  async deviceInfo(): Promise<{ flags: number; numRegions: number; numIrqs: number }> {
    const t = vfio_user_device_info;
    const message = newMessage(t.size);
    t.set.argsz(message.m, BODY, t.size);
    const r = await this.#requests.send(VFIO_USER_DEVICE_GET_INFO, message, { maxBody: t.size });
    return this.#requests.checked(r, () => {
      atLeast(r, t.size);
      const m = r.message.m;
      return {
        flags: t.get.flags(m, BODY),
        numRegions: t.get.num_regions(m, BODY),
        numIrqs: t.get.num_irqs(m, BODY),
      };
    });
  }

  /** `fds`: the region's file if it can be mapped, from byte `offset` on; the caller owns it. */
  async regionInfo(index: number): Promise<{ size: bigint; flags: number; offset: bigint; fds: number[] }> {
    const t = vfio_region_info;
    const message = newMessage(t.size);
    t.set.argsz(message.m, BODY, t.size);
    t.set.index(message.m, BODY, index);
    const r = await this.#requests.send(VFIO_USER_DEVICE_GET_REGION_INFO, message, { maxBody: t.size, maxFds: 1 });
    return this.#requests.checked(r, () => {
      atLeast(r, t.size);
      const m = r.message.m;
      same('region', t.get.index(m, BODY), index);
      return { size: t.get.size(m, BODY), flags: t.get.flags(m, BODY), offset: t.get.offset(m, BODY), fds: r.fds };
    });
  }

  async irqInfo(index: number): Promise<{ flags: number; count: number }> {
    const t = vfio_irq_info;
    const message = newMessage(t.size);
    t.set.argsz(message.m, BODY, t.size);
    t.set.index(message.m, BODY, index);
    const r = await this.#requests.send(VFIO_USER_DEVICE_GET_IRQ_INFO, message, { maxBody: t.size });
    return this.#requests.checked(r, () => {
      atLeast(r, t.size);
      same('interrupt index', t.get.index(r.message.m, BODY), index);
      return { flags: t.get.flags(r.message.m, BODY), count: t.get.count(r.message.m, BODY) };
    });
  }

  /** `offset` and `count` in bytes. Returns exactly `count` bytes, the caller's own. */
  async regionRead(index: number, offset: number, count: number): Promise<Uint8Array> {
    this.#transferable(count);
    const t = vfio_user_region_access;
    const r = await this.#requests.send(VFIO_USER_REGION_READ, access(index, offset, count, 0), {
      maxBody: t.size + count,
    });
    return this.#requests.checked(r, () => {
      atLeast(r, t.size);
      same('bytes read', t.get.count(r.message.m, BODY), count);
      atLeast(r, t.size + count);
      return r.message.u8.slice(BODY + t.size);
    });
  }

  async regionWrite(index: number, offset: number, data: Uint8Array): Promise<void> {
    this.#transferable(data.length);
    const t = vfio_user_region_access;
    const message = access(index, offset, data.length, data.length);
    message.u8.set(data, BODY + t.size);
    const r = await this.#requests.send(VFIO_USER_REGION_WRITE, message, { maxBody: t.size });
    this.#requests.checked(r, () => {
      atLeast(r, t.size);
      same('bytes written', t.get.count(r.message.m, BODY), data.length);
    });
  }

  /** Parts of a region that have an eventfd. The caller owns the descriptors; parts may share one: close each once. */
  async regionIoFds(index: number): Promise<RegionIoFd[]> {
    const head = vfio_user_region_io_fds;
    const entry = vfio_user_sub_region_ioeventfd;
    let room = head.size + IO_FDS_ROOM * entry.size;
    for (let attempt = 0; attempt < 2; attempt++) {
      const message = newMessage(head.size);
      head.set.argsz(message.m, BODY, room);
      head.set.index(message.m, BODY, index);
      const limits = { maxBody: room, maxFds: MAX_MSG_FDS };
      const r = await this.#requests.send(VFIO_USER_DEVICE_GET_REGION_IO_FDS, message, limits);
      const needed = this.#requests.checked(r, () => {
        atLeast(r, head.size);
        same('region', head.get.index(r.message.m, BODY), index);
        return head.get.argsz(r.message.m, BODY);
      });
      if (needed <= room) return this.#requests.checked(r, () => ioFdEntries(r));
      r.fds.forEach(closeFd);
      if (needed > VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE) break;
      room = needed;
    }
    throw new VfioUserError(errno.E2BIG, `DEVICE_GET_REGION_IO_FDS: no room for the sub-regions of region ${index}`);
  }

  /** Lets the server use memory. The descriptor stays the caller's, open until this resolves. */
  async dmaMap(m: { iova: bigint; size: bigint; fd?: number; offset?: bigint; flags: number }): Promise<void> {
    const t = vfio_user_dma_map;
    const message = newMessage(t.size);
    t.set.argsz(message.m, BODY, t.size);
    t.set.flags(message.m, BODY, m.flags);
    t.set.offset(message.m, BODY, m.offset ?? 0n);
    t.set.addr(message.m, BODY, m.iova);
    t.set.size(message.m, BODY, m.size);
    await this.#requests.send(VFIO_USER_DMA_MAP, message, { maxBody: 0 }, m.fd === undefined ? [] : [m.fd]);
  }

  /** Takes memory back; resolves when the server has let go of it. `all`: everything, with iova and size 0. */
  async dmaUnmap(m: { iova: bigint; size: bigint; all?: boolean }): Promise<void> {
    const t = vfio_user_dma_unmap;
    const message = newMessage(t.size);
    t.set.argsz(message.m, BODY, t.size);
    t.set.flags(message.m, BODY, m.all === true ? VFIO_DMA_UNMAP_FLAG_ALL : 0);
    t.set.addr(message.m, BODY, m.iova);
    t.set.size(message.m, BODY, m.size);
    await this.#requests.send(VFIO_USER_DMA_UNMAP, message, { maxBody: t.size });
  }

  /**
   * Has vectors from `start` on signal eventfds, which stay the caller's; more than fit in one message go in several.
   * Without `fds`, `count` vectors lose theirs.
   */
  async setIrqs(r: { index: number; start: number; fds: readonly number[]; count?: number }): Promise<void> {
    const flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    if (r.fds.length === 0) {
      await this.#setIrqs(flags, r.index, r.start, r.count ?? 1, []);
      return;
    }
    for (let i = 0; i < r.fds.length; i += this.#peer.maxMsgFds) {
      const fds = r.fds.slice(i, i + this.#peer.maxMsgFds);
      await this.#setIrqs(flags, r.index, r.start + i, fds.length, fds);
    }
  }

  /** Takes all eventfds of an index away. */
  async disableIrqs(index: number): Promise<void> {
    await this.#setIrqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0, []);
  }

  async reset(): Promise<void> {
    await this.#requests.send(VFIO_USER_DEVICE_RESET, newMessage(0), { maxBody: 0 });
  }

  /** Ends the connection; requests that wait are rejected. */
  close(): void {
    this.#requests.close('closed by this client');
  }

  async #setIrqs(flags: number, index: number, start: number, count: number, fds: readonly number[]): Promise<void> {
    const t = vfio_irq_set;
    const message = newMessage(t.size);
    t.set.argsz(message.m, BODY, t.size);
    t.set.flags(message.m, BODY, flags);
    t.set.index(message.m, BODY, index);
    t.set.start(message.m, BODY, start);
    t.set.count(message.m, BODY, count);
    await this.#requests.send(VFIO_USER_DEVICE_SET_IRQS, message, { maxBody: 0 }, fds);
  }

  #transferable(count: number): void {
    const most = Math.min(this.#peer.maxDataXferSize, VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE);
    if (count < 1 || count > most) throw new RangeError(`region access of ${count} bytes: 1 to ${most} are possible`);
  }
}

function access(index: number, offset: number, count: number, dataBytes: number): Message {
  const t = vfio_user_region_access;
  const message = newMessage(t.size + dataBytes);
  t.set.offset(message.m, BODY, BigInt(offset));
  t.set.region(message.m, BODY, index);
  t.set.count(message.m, BODY, count);
  return message;
}

function atLeast(r: ClientReply, bytes: number): void {
  if (r.message.size - BODY < bytes) throw new StreamError(`a reply of ${r.message.size} bytes is too short`);
}

function same(what: string, got: number, asked: number): void {
  if (got !== asked) throw new StreamError(`a reply about another ${what}: ${got}, not ${asked}`);
}

/** Entry i is at i * (argsz - header) / count, whatever the length of an entry is. */
function ioFdEntries(r: ClientReply): RegionIoFd[] {
  const head = vfio_user_region_io_fds;
  const entry = vfio_user_sub_region_ioeventfd;
  const m = r.message.m;
  const count = head.get.count(m, BODY);
  const bytes = head.get.argsz(m, BODY) - head.size;
  if (count === 0) return closeOthers(r.fds, []);
  const stride = bytes / count;
  if (!Number.isInteger(stride) || stride < entry.size || stride % 8 !== 0) {
    throw new StreamError(`${count} sub-regions in ${bytes} bytes`);
  }
  atLeast(r, head.size + bytes);
  const entries = Array.from({ length: count }, (_, i) => {
    const p = BODY + head.size + i * stride;
    const fd = r.fds[entry.get.fd_index(m, p)];
    if (fd === undefined) throw new StreamError(`sub-region ${i} names a descriptor that did not come`);
    const type = entry.get.type(m, p);
    if (type !== VFIO_USER_IO_FD_TYPE_IOEVENTFD) throw new StreamError(`sub-region ${i} has type ${type}`);
    return {
      fd,
      offset: Number(entry.get.gpa_offset(m, p)),
      size: Number(entry.get.size(m, p)),
      flags: entry.get.flags(m, p),
      datamatch: entry.get.datamatch(m, p),
    };
  });
  return closeOthers(r.fds, entries);
}

/** Closes descriptors that no entry names. */
function closeOthers(fds: readonly number[], entries: RegionIoFd[]): RegionIoFd[] {
  for (const fd of fds) if (!entries.some((e) => e.fd === fd)) closeFd(fd);
  return entries;
}
