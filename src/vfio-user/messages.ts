/**
 * The vfio-user protocol's numbers and layouts (QEMU docs/interop/vfio-user.rst; names as in libvfio-user's vfio-user.h
 * and Linux's vfio.h). A message is a 16-byte header and a body; all offsets of the body's tables are relative to the
 * body, which begins at byte 16 of the message, so that 64-bit fields stay aligned.
 *
 * Entry points: the tables, `newMessage`, `parseCapabilities`, `VfioUserError`.
 */
import { struct, type Views, views } from '../abi/index.ts';
import { errno, errnoName } from '../os/index.ts';

export const VFIO_USER_VERSION = 1;
export const VFIO_USER_DMA_MAP = 2;
export const VFIO_USER_DMA_UNMAP = 3;
export const VFIO_USER_DEVICE_GET_INFO = 4;
export const VFIO_USER_DEVICE_GET_REGION_INFO = 5;
export const VFIO_USER_DEVICE_GET_REGION_IO_FDS = 6;
export const VFIO_USER_DEVICE_GET_IRQ_INFO = 7;
export const VFIO_USER_DEVICE_SET_IRQS = 8;
export const VFIO_USER_REGION_READ = 9;
export const VFIO_USER_REGION_WRITE = 10;
export const VFIO_USER_DMA_READ = 11;
export const VFIO_USER_DMA_WRITE = 12;
export const VFIO_USER_DEVICE_RESET = 13;
export const VFIO_USER_REGION_WRITE_MULTI = 15;
export const VFIO_USER_DEVICE_FEATURE = 16;
export const VFIO_USER_MIG_DATA_READ = 17;
export const VFIO_USER_MIG_DATA_WRITE = 18;

/** Names of all commands of the specification, for texts. */
const commandNames: Readonly<Record<number, string>> = {
  [VFIO_USER_VERSION]: 'VERSION',
  [VFIO_USER_DMA_MAP]: 'DMA_MAP',
  [VFIO_USER_DMA_UNMAP]: 'DMA_UNMAP',
  [VFIO_USER_DEVICE_GET_INFO]: 'DEVICE_GET_INFO',
  [VFIO_USER_DEVICE_GET_REGION_INFO]: 'DEVICE_GET_REGION_INFO',
  [VFIO_USER_DEVICE_GET_REGION_IO_FDS]: 'DEVICE_GET_REGION_IO_FDS',
  [VFIO_USER_DEVICE_GET_IRQ_INFO]: 'DEVICE_GET_IRQ_INFO',
  [VFIO_USER_DEVICE_SET_IRQS]: 'DEVICE_SET_IRQS',
  [VFIO_USER_REGION_READ]: 'REGION_READ',
  [VFIO_USER_REGION_WRITE]: 'REGION_WRITE',
  [VFIO_USER_DMA_READ]: 'DMA_READ',
  [VFIO_USER_DMA_WRITE]: 'DMA_WRITE',
  [VFIO_USER_DEVICE_RESET]: 'DEVICE_RESET',
  [VFIO_USER_REGION_WRITE_MULTI]: 'REGION_WRITE_MULTI',
  [VFIO_USER_DEVICE_FEATURE]: 'DEVICE_FEATURE',
  [VFIO_USER_MIG_DATA_READ]: 'MIG_DATA_READ',
  [VFIO_USER_MIG_DATA_WRITE]: 'MIG_DATA_WRITE',
};

/** Whether the specification has this command (whoever sends it). */
export const isCommand = (cmd: number): boolean => commandNames[cmd] !== undefined;
export const commandName = (cmd: number): string => commandNames[cmd] ?? `command ${cmd}`;

export const VFIO_USER_F_TYPE_MASK = 0xf;
export const VFIO_USER_F_TYPE_COMMAND = 0;
export const VFIO_USER_F_TYPE_REPLY = 1;
export const VFIO_USER_F_NO_REPLY = 0x10;
export const VFIO_USER_F_ERROR = 0x20;

export const VFIO_USER_MAJOR = 0;
export const VFIO_USER_MINOR = 0;
export const VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE = 2 ** 20;
/** What a side that says nothing can receive in one message. */
export const VFIO_USER_DEFAULT_MAX_MSG_FDS = 1;
/** Longest version data accepted, bytes with its NUL. QEMU 11.1 sends 194. */
export const MAX_VERSION_DATA = 4096;

export const VFIO_USER_F_DMA_REGION_READ = 1;
export const VFIO_USER_F_DMA_REGION_WRITE = 2;
/** Set by some clients with a descriptor; QEMU never sets it. */
export const VFIO_USER_F_DMA_REGION_MMAP = 4;
export const VFIO_DMA_UNMAP_FLAG_ALL = 2;

export const VFIO_DEVICE_FLAGS_RESET = 1;
export const VFIO_DEVICE_FLAGS_PCI = 2;
export const VFIO_REGION_INFO_FLAG_READ = 1;
export const VFIO_REGION_INFO_FLAG_WRITE = 2;
export const VFIO_REGION_INFO_FLAG_MMAP = 4;
export const VFIO_REGION_INFO_FLAG_CAPS = 8;
export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1;
export const VFIO_IRQ_INFO_EVENTFD = 1;
export const VFIO_IRQ_INFO_NORESIZE = 8;
export const VFIO_IRQ_SET_DATA_NONE = 1;
export const VFIO_IRQ_SET_DATA_BOOL = 2;
export const VFIO_IRQ_SET_DATA_EVENTFD = 4;
export const VFIO_IRQ_SET_ACTION_MASK = 8;
export const VFIO_IRQ_SET_ACTION_UNMASK = 0x10;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 0x20;
export const VFIO_USER_IO_FD_TYPE_IOEVENTFD = 0;

/** Region and interrupt indexes of PCI devices, and how many there are (linux/vfio.h). */
export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
export const VFIO_PCI_NUM_REGIONS = 9;
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
export const VFIO_PCI_NUM_IRQS = 5;

export const vfio_user_header = struct('vfio_user_header', 16, {
  msg_id: [0, 'u16'],
  cmd: [2, 'u16'],
  msg_size: [4, 'u32'],
  flags: [8, 'u32'],
  error_no: [12, 'u32'],
});
/** Followed by the version data: JSON with a NUL. */
export const vfio_user_version = struct('vfio_user_version', 4, { major: [0, 'u16'], minor: [2, 'u16'] });
export const vfio_user_dma_map = struct('vfio_user_dma_map', 32, {
  argsz: [0, 'u32'],
  flags: [4, 'u32'],
  offset: [8, 'u64'],
  addr: [16, 'u64'],
  size: [24, 'u64'],
});
export const vfio_user_dma_unmap = struct('vfio_user_dma_unmap', 24, {
  argsz: [0, 'u32'],
  flags: [4, 'u32'],
  addr: [8, 'u64'],
  size: [16, 'u64'],
});
export const vfio_user_device_info = struct('vfio_user_device_info', 16, {
  argsz: [0, 'u32'],
  flags: [4, 'u32'],
  num_regions: [8, 'u32'],
  num_irqs: [12, 'u32'],
});
export const vfio_region_info = struct('vfio_region_info', 32, {
  argsz: [0, 'u32'],
  flags: [4, 'u32'],
  index: [8, 'u32'],
  cap_offset: [12, 'u32'],
  size: [16, 'u64'],
  offset: [24, 'u64'],
});
/** Which parts of a region can be mapped; here with one area. */
export const vfio_region_info_cap_sparse_mmap = struct('vfio_region_info_cap_sparse_mmap', 32, {
  id: [0, 'u16'],
  version: [2, 'u16'],
  next: [4, 'u32'],
  nr_areas: [8, 'u32'],
  area_offset: [16, 'u64'],
  area_size: [24, 'u64'],
});
export const vfio_irq_info = struct('vfio_irq_info', 16, {
  argsz: [0, 'u32'],
  flags: [4, 'u32'],
  index: [8, 'u32'],
  count: [12, 'u32'],
});
/** Followed by `count` booleans (bytes) with DATA_BOOL. */
export const vfio_irq_set = struct('vfio_irq_set', 20, {
  argsz: [0, 'u32'],
  flags: [4, 'u32'],
  index: [8, 'u32'],
  start: [12, 'u32'],
  count: [16, 'u32'],
});
/** Followed by the data in a write request and in a read reply. */
export const vfio_user_region_access = struct('vfio_user_region_access', 16, {
  offset: [0, 'u64'],
  region: [8, 'u32'],
  count: [12, 'u32'],
});
/** Request and reply; the reply is followed by `count` sub-regions. */
export const vfio_user_region_io_fds = struct('vfio_user_region_io_fds', 16, {
  argsz: [0, 'u32'],
  flags: [4, 'u32'],
  index: [8, 'u32'],
  count: [12, 'u32'],
});
/** As in the specification; libvfio-user's own is longer, so the distance of two follows from the reply's argsz. */
export const vfio_user_sub_region_ioeventfd = struct('vfio_user_sub_region_ioeventfd', 40, {
  gpa_offset: [0, 'u64'],
  size: [8, 'u64'],
  fd_index: [16, 'u32'],
  type: [20, 'u32'],
  flags: [24, 'u32'],
  datamatch: [32, 'u64'],
});

/** Where the body begins in a message. */
export const BODY = vfio_user_header.size;
/** Largest body besides data transfers and version data: a region access's own fields. */
const ACCESS = vfio_user_region_access.size;

/** Longest message with at most this much transferred data, bytes. */
export const maxMessageBytes = (maxDataXferSize: number): number =>
  BODY + Math.max(ACCESS + maxDataXferSize, vfio_user_version.size + MAX_VERSION_DATA);

/** A whole message: `size` bytes from the start of `u8`, fields by `m`. */
export interface Message {
  readonly m: Views;
  readonly u8: Uint8Array;
  readonly size: number;
}

/** A zeroed message with a header that says its size; nothing else is filled in. */
export function newMessage(bodyBytes: number): Message {
  const size = BODY + bodyBytes;
  const m = views(new ArrayBuffer((size + 7) & ~7));
  vfio_user_header.set.msg_size(m, 0, size);
  return { m, u8: m.u8.subarray(0, size), size };
}

/** What one side can receive. */
export interface Capabilities {
  /** Most descriptors in one message. */
  readonly maxMsgFds: number;
  /** Most bytes of one region access. */
  readonly maxDataXferSize: number;
}

/** A refused request, or what a peer did wrong. Its errno goes into the reply. */
export class VfioUserError extends Error {
  /** Positive errno. */
  readonly errno: number;
  constructor(errnoValue: number, message: string) {
    super(`${message} (${errnoName(errnoValue)})`);
    this.name = 'VfioUserError';
    this.errno = errnoValue;
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true });

/**
 * Reads version data: absent, or JSON ended by a NUL. What is not said has the specification's default; unknown names
 * are ignored.
 * @throws VfioUserError EINVAL
 */
export function parseCapabilities(data: Uint8Array): Capabilities {
  let maxMsgFds = VFIO_USER_DEFAULT_MAX_MSG_FDS;
  let maxDataXferSize = VFIO_USER_DEFAULT_MAX_DATA_XFER_SIZE;
  if (data.length > 0) {
    if (data[data.length - 1] !== 0) throw new VfioUserError(errno.EINVAL, 'version data does not end with a NUL');
    const caps = object(parseJson(data.subarray(0, -1)), 'version data')['capabilities'];
    if (caps !== undefined) {
      const c = object(caps, 'capabilities');
      maxMsgFds = count(c, 'max_msg_fds', maxMsgFds);
      maxDataXferSize = count(c, 'max_data_xfer_size', maxDataXferSize);
    }
  }
  return { maxMsgFds, maxDataXferSize };
}

function parseJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(utf8.decode(bytes));
  } catch {
    throw new VfioUserError(errno.EINVAL, 'version data is not JSON');
  }
}

function object(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new VfioUserError(errno.EINVAL, `${what}: not a JSON object`);
  }
  return value as Record<string, unknown>;
}

function count(caps: Record<string, unknown>, name: string, absent: number): number {
  const value = Object.hasOwn(caps, name) ? caps[name] : absent;
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 1) {
    throw new VfioUserError(errno.EINVAL, `capability ${name}: not a positive integer`);
  }
  return value;
}

/**
 * Version data that says what we can receive, at most `maxBytes` long with its NUL: QEMU exits on a reply longer than
 * its request, and refuses names it does not know. Shorter forms leave out what does not fit, down to nothing at all.
 */
export function formatCapabilities(caps: Capabilities, maxBytes: number): Uint8Array {
  const max_msg_fds = caps.maxMsgFds;
  const forms = [
    { capabilities: { max_msg_fds, max_data_xfer_size: caps.maxDataXferSize } },
    { capabilities: { max_msg_fds } },
    {},
  ];
  for (const form of forms) {
    const data = new TextEncoder().encode(`${JSON.stringify(form)}\0`);
    if (data.length <= maxBytes) return data;
  }
  return new Uint8Array(0);
}
