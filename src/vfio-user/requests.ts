/**
 * Every request that a server answers: its sizes and descriptors, checks, the call into the device, the reply. All
 * checks of a request come before its one call (libvfio-user's order). Nothing here touches a socket.
 *
 * Entry points: `VfioUserDevice` (what a device implements), `serveRequest`.
 */
import { errno } from '../os/index.ts';
import type { DmaMap, DmaUnmap } from './dma.ts';
import {
  BODY,
  type Capabilities,
  commandName,
  formatCapabilities,
  isCommand,
  MAX_VERSION_DATA,
  type Message,
  newMessage,
  parseCapabilities,
  VFIO_DMA_UNMAP_FLAG_ALL,
  VFIO_IRQ_SET_ACTION_MASK,
  VFIO_IRQ_SET_ACTION_TRIGGER,
  VFIO_IRQ_SET_ACTION_UNMASK,
  VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD,
  VFIO_IRQ_SET_DATA_NONE,
  VFIO_REGION_INFO_CAP_SPARSE_MMAP,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_REGION_INFO_FLAG_READ,
  VFIO_REGION_INFO_FLAG_WRITE,
  VFIO_USER_DEVICE_GET_INFO,
  VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_DEVICE_GET_REGION_INFO,
  VFIO_USER_DEVICE_GET_REGION_IO_FDS,
  VFIO_USER_DEVICE_RESET,
  VFIO_USER_DEVICE_SET_IRQS,
  VFIO_USER_DMA_MAP,
  VFIO_USER_DMA_UNMAP,
  VFIO_USER_F_DMA_REGION_MMAP,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  VFIO_USER_F_TYPE_COMMAND,
  VFIO_USER_F_TYPE_MASK,
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
  vfio_region_info_cap_sparse_mmap as sparse_mmap,
  vfio_user_device_info,
  vfio_user_dma_map,
  vfio_user_dma_unmap,
  vfio_user_header,
  vfio_user_region_access,
  vfio_user_region_io_fds,
  vfio_user_sub_region_ioeventfd,
  vfio_user_version,
} from './messages.ts';
import type { MessageReader } from './stream.ts';

export interface RegionInfo {
  /** Bytes; 0 for a region that does not exist. */
  readonly size: bigint | number;
  /** VFIO_REGION_INFO_FLAG_*. */
  readonly flags: number;
  /** Sent along when flags has MMAP; stays the device's, open as long as the connection is. */
  readonly fd?: number;
  /** Where in the file the region begins, bytes (default 0). */
  readonly fdOffset?: bigint | number;
  /** Bytes from its start on that can be mapped (default: all). */
  readonly mmapBytes?: number;
}

/** A part of a region whose writes may go to an eventfd instead of a REGION_WRITE. */
export interface RegionIoFd {
  /** Stays the device's on the server's side. Entries may share one. */
  readonly fd: number;
  readonly offset: number;
  /** Bytes of an access that counts, 0 for any. */
  readonly size: number;
  /** KVM_IOEVENTFD_FLAG_* (1: only writes of `datamatch`). */
  readonly flags?: number;
  readonly datamatch?: bigint;
}

/**
 * Vectors of one index. Two forms come through, both with ACTION_TRIGGER: DATA_EVENTFD with `count` descriptors (assign
 * from `start` on) or none of them (take away), and DATA_NONE with count 0 (take all away).
 */
export interface SetIrqs {
  readonly index: number;
  readonly flags: number;
  readonly start: number;
  readonly count: number;
  readonly fds: number[];
}

/**
 * What a device does with requests. Handlers of one connection never overlap. What a handler throws as VfioUserError is
 * the client's fault and goes back as its errno; anything else is ours and goes back as EIO. Descriptors in a call
 * belong to the device from that call on, also when it throws.
 */
export interface VfioUserDevice {
  readonly numRegions: number;
  readonly numIrqs: number;
  /** VFIO_DEVICE_FLAGS_*. */
  readonly deviceFlags: number;
  /** Any index below numRegions. Also gives the bounds and rights that every access is checked against first. */
  regionInfo(index: number): RegionInfo;
  /** Any index below numIrqs. */
  irqInfo(index: number): { readonly flags: number; readonly count: number };
  regionIoFds?(index: number): readonly RegionIoFd[];
  /** Checked: size > 0, iova + size ≤ 2^64; with a descriptor, offset + size < 2^53. */
  dmaMap(m: DmaMap): void | Promise<void>;
  /** May match many mappings or none. A request for all (VFIO_DMA_UNMAP_FLAG_ALL) comes as iova 0, size 2^64. */
  dmaUnmap(m: DmaUnmap): void | Promise<void>;
  /** Checked: inside the region, which is readable. Returns exactly `count` bytes. */
  regionRead(index: number, offset: number, count: number): Uint8Array | Promise<Uint8Array>;
  /** Checked: inside the region, which is writable. `data` is valid until the handler has settled. */
  regionWrite(index: number, offset: number, data: Uint8Array): void | Promise<void>;
  setIrqs(r: SetIrqs): void | Promise<void>;
  reset(): void | Promise<void>;
  /** Called once, last: the connection is over and its socket closed. */
  disconnected(reason: string): void | Promise<void>;
}

/** What requests need to know of their connection. */
export interface Session {
  readonly device: VfioUserDevice;
  /** What we can receive. */
  readonly own: Capabilities;
  /** What the client can receive; undefined until it negotiated. */
  peer: Capabilities | undefined;
}

/** The reply's message, header still empty, and descriptors to send along, which stay the device's. */
export interface Reply {
  readonly message: Message;
  readonly fds?: readonly number[];
}

type Served = Reply | Promise<Reply>;

interface RequestSpec {
  readonly minBody: number;
  /** Absent: no more than minBody. */
  readonly maxBody?: (s: Session) => number;
  /** Most descriptors it may bring (default 0). */
  readonly maxFds?: (s: Session) => number;
  readonly serve: (s: Session, r: Message, reader: MessageReader) => Served;
}

const refuse = (text: string, code: number = errno.EINVAL): never => {
  throw new VfioUserError(code, text);
};

const U64 = 1n << 64n;
/** Vectors of an MSI-X device: the longest array of booleans. */
const MAX_IRQ_BOOLS = 2048;
const MAX_FILE = BigInt(Number.MAX_SAFE_INTEGER);
const EMPTY = (): Reply => ({ message: newMessage(0) });

/** Goes on at once with a value, later with a promise: a synchronous handler's reply needs no turn of the loop. */
function after<T>(value: T | Promise<T>, then: (value: T) => Reply): Served {
  return value instanceof Promise ? value.then(then) : then(value);
}

const requests: Readonly<Record<number, RequestSpec>> = {
  [VFIO_USER_VERSION]: {
    minBody: vfio_user_version.size,
    maxBody: () => vfio_user_version.size + MAX_VERSION_DATA,
    serve: version,
  },
  [VFIO_USER_DMA_MAP]: { minBody: vfio_user_dma_map.size, maxFds: () => 1, serve: dmaMap },
  [VFIO_USER_DMA_UNMAP]: { minBody: vfio_user_dma_unmap.size, serve: dmaUnmap },
  [VFIO_USER_DEVICE_GET_INFO]: { minBody: vfio_user_device_info.size, serve: deviceInfo },
  [VFIO_USER_DEVICE_GET_REGION_INFO]: { minBody: vfio_region_info.size, serve: regionInfo },
  [VFIO_USER_DEVICE_GET_REGION_IO_FDS]: { minBody: vfio_user_region_io_fds.size, serve: regionIoFds },
  [VFIO_USER_DEVICE_GET_IRQ_INFO]: { minBody: vfio_irq_info.size, serve: irqInfo },
  [VFIO_USER_DEVICE_SET_IRQS]: {
    minBody: vfio_irq_set.size,
    maxBody: () => vfio_irq_set.size + MAX_IRQ_BOOLS,
    maxFds: (s) => s.own.maxMsgFds,
    serve: setIrqs,
  },
  [VFIO_USER_REGION_READ]: { minBody: vfio_user_region_access.size, serve: regionRead },
  [VFIO_USER_REGION_WRITE]: {
    minBody: vfio_user_region_access.size,
    maxBody: (s) => vfio_user_region_access.size + s.own.maxDataXferSize,
    serve: regionWrite,
  },
  [VFIO_USER_DEVICE_RESET]: { minBody: 0, serve: (s) => after(s.device.reset(), EMPTY) },
};

/**
 * Checks one request and has the device do it. @param reader holds the request and its descriptors
 * @throws VfioUserError (also by rejecting) for what the client did wrong
 */
export function serveRequest(s: Session, reader: MessageReader): Served {
  const r = reader.message;
  const cmd = vfio_user_header.get.cmd(r.m, 0);
  if ((vfio_user_header.get.flags(r.m, 0) & VFIO_USER_F_TYPE_MASK) !== VFIO_USER_F_TYPE_COMMAND) {
    return refuse('a reply, or no known type of message: nothing was asked');
  }
  if (reader.fault !== undefined) return refuse(reader.fault);
  const spec = requests[cmd];
  if (spec === undefined) {
    return isCommand(cmd) ? refuse('not offered by this device', errno.ENOTSUP) : refuse('no such command');
  }
  const body = r.size - BODY;
  const maxBody = spec.maxBody?.(s) ?? spec.minBody;
  if (body < spec.minBody || body > maxBody) return refuse(`body of ${body} bytes, not ${spec.minBody}`);
  const maxFds = spec.maxFds?.(s) ?? 0;
  if (reader.fdCount > maxFds) return refuse(`${reader.fdCount} descriptors, at most ${maxFds} expected`);
  if ((s.peer === undefined) !== (cmd === VFIO_USER_VERSION)) {
    return refuse(s.peer === undefined ? `${commandName(VFIO_USER_VERSION)} must come first` : 'a second time');
  }
  return spec.serve(s, r, reader);
}

function version(s: Session, { m, u8, size }: Message): Reply {
  const major = vfio_user_version.get.major(m, BODY);
  if (major !== VFIO_USER_MAJOR) return refuse(`version ${major} is not spoken here, only ${VFIO_USER_MAJOR}`);
  const data = u8.subarray(BODY + vfio_user_version.size);
  s.peer = parseCapabilities(data);
  const caps = formatCapabilities(s.own, data.length);
  const message = newMessage(vfio_user_version.size + caps.length);
  vfio_user_version.set.major(message.m, BODY, VFIO_USER_MAJOR);
  vfio_user_version.set.minor(message.m, BODY, VFIO_USER_MINOR);
  message.u8.set(caps, BODY + vfio_user_version.size);
  if (message.size > size) throw new Error(`VERSION reply of ${message.size} bytes to a request of ${size}`);
  return { message };
}

function dmaMap(s: Session, { m }: Message, reader: MessageReader): Served {
  const flags = vfio_user_dma_map.get.flags(m, BODY);
  const offset = vfio_user_dma_map.get.offset(m, BODY);
  const iova = vfio_user_dma_map.get.addr(m, BODY);
  const size = vfio_user_dma_map.get.size(m, BODY);
  argsz(vfio_user_dma_map.get.argsz(m, BODY), vfio_user_dma_map.size);
  const known = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE | VFIO_USER_F_DMA_REGION_MMAP;
  if ((flags & ~known) !== 0) refuse(`flags 0x${flags.toString(16)}`);
  if (size === 0n || iova + size > U64) refuse('size 0, or addresses beyond 64 bits');
  if (reader.fdCount > 0 && offset + size > MAX_FILE) refuse('file offset and size beyond 53 bits');
  const [fd] = reader.takeFds();
  return after(s.device.dmaMap({ iova, size, flags, offset, fd }), EMPTY);
}

function dmaUnmap(s: Session, { m, u8 }: Message): Served {
  const flags = vfio_user_dma_unmap.get.flags(m, BODY);
  const iova = vfio_user_dma_unmap.get.addr(m, BODY);
  const size = vfio_user_dma_unmap.get.size(m, BODY);
  argsz(vfio_user_dma_unmap.get.argsz(m, BODY), vfio_user_dma_unmap.size);
  const all = flags === VFIO_DMA_UNMAP_FLAG_ALL;
  if (flags !== 0 && !all) refuse(`flags 0x${flags.toString(16)}`);
  if (all && (iova !== 0n || size !== 0n)) refuse('all, but address or size are not 0');
  if (iova + size > U64) refuse('addresses beyond 64 bits');
  const message = newMessage(vfio_user_dma_unmap.size); // the request's body comes back
  message.u8.set(u8.subarray(BODY), BODY);
  return after(s.device.dmaUnmap({ iova, size: all ? U64 : size, flags }), () => ({ message }));
}

function deviceInfo(s: Session, { m }: Message): Reply {
  argsz(vfio_user_device_info.get.argsz(m, BODY), vfio_user_device_info.size);
  const message = newMessage(vfio_user_device_info.size);
  vfio_user_device_info.set.argsz(message.m, BODY, vfio_user_device_info.size);
  vfio_user_device_info.set.flags(message.m, BODY, s.device.deviceFlags);
  vfio_user_device_info.set.num_regions(message.m, BODY, s.device.numRegions);
  vfio_user_device_info.set.num_irqs(message.m, BODY, s.device.numIrqs);
  return { message };
}

function regionInfo(s: Session, { m }: Message): Reply {
  const index = vfio_region_info.get.index(m, BODY);
  const room = vfio_region_info.get.argsz(m, BODY);
  argsz(room, vfio_region_info.size);
  const info = region(s, index);
  const mmapBytes = info.mmapBytes ?? info.size;
  const sparse = mmapBytes < info.size;
  const full = vfio_region_info.size + (sparse ? sparse_mmap.size : 0);
  const fits = full <= room; // if not, argsz tells the client to ask again with more room
  const message = newMessage(fits ? full : vfio_region_info.size);
  vfio_region_info.set.argsz(message.m, BODY, full);
  vfio_region_info.set.flags(message.m, BODY, info.flags);
  vfio_region_info.set.index(message.m, BODY, index);
  vfio_region_info.set.size(message.m, BODY, BigInt(info.size));
  vfio_region_info.set.offset(message.m, BODY, BigInt(info.fdOffset ?? 0));
  if (sparse && fits) {
    const cap = BODY + vfio_region_info.size;
    vfio_region_info.set.flags(message.m, BODY, info.flags | VFIO_REGION_INFO_FLAG_CAPS);
    vfio_region_info.set.cap_offset(message.m, BODY, vfio_region_info.size);
    sparse_mmap.set.id(message.m, cap, VFIO_REGION_INFO_CAP_SPARSE_MMAP);
    sparse_mmap.set.version(message.m, cap, 1);
    sparse_mmap.set.nr_areas(message.m, cap, 1);
    sparse_mmap.set.area_size(message.m, cap, BigInt(mmapBytes));
  }
  const mappable = info.fd !== undefined && (info.flags & VFIO_REGION_INFO_FLAG_MMAP) !== 0;
  return mappable ? { message, fds: [info.fd] } : { message };
}

function regionIoFds(s: Session, { m }: Message): Reply {
  const index = vfio_user_region_io_fds.get.index(m, BODY);
  const room = vfio_user_region_io_fds.get.argsz(m, BODY);
  argsz(room, vfio_user_region_io_fds.size);
  if (vfio_user_region_io_fds.get.flags(m, BODY) !== 0 || vfio_user_region_io_fds.get.count(m, BODY) !== 0) {
    refuse('flags and count must be 0');
  }
  region(s, index);
  const parts = s.device.regionIoFds?.(index) ?? [];
  const fds = [...new Set(parts.map((p) => p.fd))];
  const most = s.peer!.maxMsgFds;
  if (fds.length > most) refuse(`${fds.length} descriptors to send, but the client takes ${most}`, errno.E2BIG);
  const entry = vfio_user_sub_region_ioeventfd;
  const full = vfio_user_region_io_fds.size + parts.length * entry.size;
  const fits = full <= room; // if not, argsz tells the client to ask again with more room
  const message = newMessage(fits ? full : vfio_user_region_io_fds.size);
  vfio_user_region_io_fds.set.argsz(message.m, BODY, full);
  vfio_user_region_io_fds.set.index(message.m, BODY, index);
  vfio_user_region_io_fds.set.count(message.m, BODY, parts.length);
  if (!fits) return { message };
  parts.forEach((part, i) => {
    const p = BODY + vfio_user_region_io_fds.size + i * entry.size;
    entry.set.gpa_offset(message.m, p, BigInt(part.offset));
    entry.set.size(message.m, p, BigInt(part.size));
    entry.set.fd_index(message.m, p, fds.indexOf(part.fd));
    entry.set.type(message.m, p, VFIO_USER_IO_FD_TYPE_IOEVENTFD);
    entry.set.flags(message.m, p, part.flags ?? 0);
    entry.set.datamatch(message.m, p, part.datamatch ?? 0n);
  });
  return { message, fds };
}

function irqInfo(s: Session, { m }: Message): Reply {
  const index = vfio_irq_info.get.index(m, BODY);
  argsz(vfio_irq_info.get.argsz(m, BODY), vfio_irq_info.size);
  const info = irq(s, index);
  const message = newMessage(vfio_irq_info.size);
  vfio_irq_info.set.argsz(message.m, BODY, vfio_irq_info.size);
  vfio_irq_info.set.flags(message.m, BODY, info.flags);
  vfio_irq_info.set.index(message.m, BODY, index);
  vfio_irq_info.set.count(message.m, BODY, info.count);
  return { message };
}

const IRQ_DATA = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD;
const IRQ_ACTION = VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER;
const oneBit = (n: number): boolean => n !== 0 && (n & (n - 1)) === 0;

function setIrqs(s: Session, { m, size }: Message, reader: MessageReader): Served {
  const flags = vfio_irq_set.get.flags(m, BODY);
  const index = vfio_irq_set.get.index(m, BODY);
  const start = vfio_irq_set.get.start(m, BODY);
  const count = vfio_irq_set.get.count(m, BODY);
  const data = flags & IRQ_DATA;
  const action = flags & IRQ_ACTION;
  argsz(vfio_irq_set.get.argsz(m, BODY), vfio_irq_set.size);
  if (flags >>> 0 !== data + action || !oneBit(data) || !oneBit(action)) refuse(`flags 0x${flags.toString(16)}`);
  const extra = data === VFIO_IRQ_SET_DATA_BOOL ? count : 0;
  if (size !== BODY + vfio_irq_set.size + extra) refuse(`body of ${size - BODY} bytes for ${count} vectors`);
  const have = irq(s, index).count;
  if (start + count > have) refuse(`vectors ${start} to ${start + count} of ${have}`);
  const disableAll = data === VFIO_IRQ_SET_DATA_NONE && action === VFIO_IRQ_SET_ACTION_TRIGGER && count === 0;
  if (count === 0 && (!disableAll || start !== 0)) refuse('count 0 means: trigger, no data, start 0');
  const assign = data === VFIO_IRQ_SET_DATA_EVENTFD && action === VFIO_IRQ_SET_ACTION_TRIGGER;
  if (!assign && !disableAll) refuse(`flags 0x${flags.toString(16)}: only eventfds to trigger are`, errno.ENOTSUP);
  const given = reader.fdCount;
  if (given !== 0 && (!assign || given !== count)) refuse(`${given} descriptors for ${count} vectors`);
  const fds = reader.takeFds();
  return after(s.device.setIrqs({ index, flags, start, count, fds }), EMPTY);
}

function regionRead(s: Session, { m }: Message): Served {
  const { index, offset, count } = access(s, m, VFIO_REGION_INFO_FLAG_READ);
  return after(s.device.regionRead(index, offset, count), (data) => {
    if (data.length !== count) throw new Error(`the device read ${data.length} bytes where ${count} were asked for`);
    const message = newMessage(vfio_user_region_access.size + count);
    message.u8.set(data, BODY + vfio_user_region_access.size);
    return { message: accessReply(message, index, offset, count) };
  });
}

function regionWrite(s: Session, { m, u8, size }: Message): Served {
  const { index, offset, count } = access(s, m, VFIO_REGION_INFO_FLAG_WRITE);
  const data = u8.subarray(BODY + vfio_user_region_access.size);
  if (data.length !== count) refuse(`body of ${size - BODY} bytes for ${count} bytes to write`);
  return after(s.device.regionWrite(index, offset, data), () => ({
    message: accessReply(newMessage(vfio_user_region_access.size), index, offset, count),
  }));
}

function access(s: Session, m: Message['m'], right: number): { index: number; offset: number; count: number } {
  const index = vfio_user_region_access.get.region(m, BODY);
  const offset = vfio_user_region_access.get.offset(m, BODY);
  const count = vfio_user_region_access.get.count(m, BODY);
  const info = region(s, index);
  const most = Math.min(s.own.maxDataXferSize, s.peer!.maxDataXferSize);
  if (count === 0 || count > most) refuse(`count ${count}, not 1 to ${most}`);
  if (offset + BigInt(count) > BigInt(info.size)) refuse(`${count} bytes at ${offset} of region ${index}: outside`);
  if ((info.flags & right) === 0) refuse(`region ${index} has no right ${right}`, errno.EPERM);
  return { index, offset: Number(offset), count };
}

function accessReply(message: Message, index: number, offset: number, count: number): Message {
  vfio_user_region_access.set.offset(message.m, BODY, BigInt(offset));
  vfio_user_region_access.set.region(message.m, BODY, index);
  vfio_user_region_access.set.count(message.m, BODY, count);
  return message;
}

function argsz(value: number, needed: number): void {
  if (value < needed) refuse(`argsz ${value} is less than ${needed}`);
}

function region(s: Session, index: number): RegionInfo {
  if (index >= s.device.numRegions) refuse(`region ${index} of ${s.device.numRegions}`);
  return s.device.regionInfo(index);
}

function irq(s: Session, index: number): { readonly flags: number; readonly count: number } {
  if (index >= s.device.numIrqs) refuse(`interrupt index ${index} of ${s.device.numIrqs}`);
  return s.device.irqInfo(index);
}
