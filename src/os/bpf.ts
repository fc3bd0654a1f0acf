/**
 * BPF without a library (bpf(2), headers linux/bpf.h): the maps and the few programs that a NIC port needs, assembled here,
 * and links, which attach a program to an interface for as long as their descriptor is open: whatever way the process
 * ends, the interface is as it was.
 */
import { errno, SysError } from './errno.ts';
import { closeFd } from './events.ts';
import { check, lastErrno, libc, scratch } from './libc.ts';

const SYS_BPF = 321;
const BPF_MAP_CREATE = 0;
const BPF_MAP_UPDATE_ELEM = 2;
const BPF_PROG_LOAD = 5;
const BPF_PROG_TEST_RUN = 10;
const BPF_LINK_CREATE = 28;
const BPF_MAP_TYPE_XSKMAP = 17;
const BPF_PROG_TYPE_SOCKET_FILTER = 1;
const BPF_PROG_TYPE_SCHED_CLS = 3;
const BPF_PROG_TYPE_XDP = 6;
const BPF_XDP = 37;
const BPF_TCX_INGRESS = 46;
const BPF_TCX_EGRESS = 47;
const BPF_F_XDP_HAS_FRAGS = 0x20;
const BPF_F_INGRESS = 1;
const XDP_FLAGS_SKB_MODE = 2;
const XDP_FLAGS_DRV_MODE = 4;
const XDP_VERDICT = { drop: 1, pass: 2 } as const;
const BPF_F_TEST_XDP_LIVE_FRAMES = 2;
/** struct xdp_md */
const XDP_MD_RX_QUEUE_INDEX = 16;
/** struct __sk_buff */
const SKB_TC_INDEX = 44;
/** tc_index of frames that we have an interface receive, which did not come from its wire. */
const INJECTED = 0x7074;
const TCX_NEXT = -1;
const TCX_DROP = 2;
const SOL_SOCKET = 1;
const SO_ATTACH_BPF = 50;
const FUNC_REDIRECT = 23;
const FUNC_REDIRECT_MAP = 51;

/** Whether the driver runs the program, or the kernel after it made an skb. */
export type XdpMode = 'native' | 'generic';

const attr = scratch(128);

/** One bpf(2) call. The command's attributes are those that `fill` writes; the rest is 0. Returns what it returns. */
function bpf(command: number, what: string, fill: (view: DataView) => void): number {
  attr.u8.fill(0);
  fill(attr.view);
  const result = libc.syscall(SYS_BPF, command, attr.address, attr.u8.length, 0);
  if (result < 0) throw bpfError(what, lastErrno());
  return result;
}

function bpfError(what: string, e: number): SysError {
  return new SysError(e === errno.EPERM ? `${what} (it takes root, or CAP_BPF and CAP_NET_ADMIN)` : what, e);
}

/** A map from the numbers of an interface's queues to AF_XDP sockets. Returns its descriptor. */
export function xskMap(queues: number): number {
  return bpf(BPF_MAP_CREATE, 'bpf(MAP_CREATE, XSKMAP)', (a) => {
    a.setUint32(0, BPF_MAP_TYPE_XSKMAP, true);
    a.setUint32(4, 4, true);
    a.setUint32(8, 4, true);
    a.setUint32(12, queues, true);
  });
}

/** Gives the frames of a queue to a socket, which is bound to it; a closed socket leaves the map by itself. */
export function xskMapSet(map: number, queue: number, socket: number): void {
  const key = scratch(4);
  const value = scratch(4);
  key.view.setUint32(0, queue, true);
  value.view.setInt32(0, socket, true);
  bpf(BPF_MAP_UPDATE_ELEM, `bpf(MAP_UPDATE_ELEM, queue ${queue})`, (a) => {
    a.setUint32(0, map, true);
    a.setBigUint64(8, BigInt(key.address), true);
    a.setBigUint64(16, BigInt(value.address), true);
  });
}

/** Instructions: opcode, registers (source << 4 | destination), offset, immediate. */
class Assembler {
  readonly #code: number[] = [];

  add(opcode: number, dst: number, src: number, offset: number, immediate: number): this {
    const i32 = immediate >>> 0;
    this.#code.push(opcode, (src << 4) | dst, offset & 0xff, (offset >> 8) & 0xff);
    this.#code.push(i32 & 0xff, (i32 >>> 8) & 0xff, (i32 >>> 16) & 0xff, i32 >>> 24);
    return this;
  }

  /** dst = immediate */
  mov(dst: number, immediate: number): this {
    return this.add(0xb7, dst, 0, 0, immediate);
  }

  /** dst = *(u32 *)(src + offset) */
  loadWord(dst: number, src: number, offset: number): this {
    return this.add(0x61, dst, src, offset, 0);
  }

  /** *(u32 *)(dst + offset) = src */
  storeWord(dst: number, offset: number, src: number): this {
    return this.add(0x63, dst, src, offset, 0);
  }

  /** Passes over the next instruction if dst == immediate. */
  skipIfEqual(dst: number, immediate: number): this {
    return this.add(0x15, dst, 0, 1, immediate);
  }

  /** dst = the map of a descriptor */
  loadMap(dst: number, fd: number): this {
    return this.add(0x18, dst, 1, 0, fd).add(0, 0, 0, 0, 0);
  }

  call(helper: number): this {
    return this.add(0x85, 0, 0, 0, helper);
  }

  exit(): this {
    return this.add(0x95, 0, 0, 0, 0);
  }

  get code(): Uint8Array {
    return Uint8Array.from(this.#code);
  }
}

function load(type: number, attachType: number, flags: number, assembler: Assembler): number {
  const { code } = assembler;
  const instructions = scratch(code.length);
  instructions.u8.set(code);
  const license = scratch(8);
  license.u8.set(new TextEncoder().encode('GPL'));
  return bpf(BPF_PROG_LOAD, 'bpf(PROG_LOAD)', (a) => {
    a.setUint32(0, type, true);
    a.setUint32(4, code.length / 8, true);
    a.setBigUint64(8, BigInt(instructions.address), true);
    a.setBigUint64(16, BigInt(license.address), true);
    a.setUint32(44, flags, true);
    for (const [i, c] of [...'ptnet'].entries()) a.setUint8(48 + i, c.charCodeAt(0));
    a.setUint32(68, attachType, true);
  });
}

/** An XDP program: frames of a queue go to the socket that the map has for it; without one they are dropped. */
export function xdpToSockets(map: number): number {
  const program = new Assembler()
    .loadWord(2, 1, XDP_MD_RX_QUEUE_INDEX)
    .loadMap(1, map)
    .mov(3, XDP_VERDICT.drop)
    .call(FUNC_REDIRECT_MAP)
    .exit();
  return load(BPF_PROG_TYPE_XDP, BPF_XDP, BPF_F_XDP_HAS_FRAGS, program);
}

/** An XDP program that drops every frame, the most that a kernel can receive, or leaves every frame to the kernel. */
export function xdpAlways(verdict: keyof typeof XDP_VERDICT): number {
  const program = new Assembler().mov(0, XDP_VERDICT[verdict]).exit();
  return load(BPF_PROG_TYPE_XDP, BPF_XDP, BPF_F_XDP_HAS_FRAGS, program);
}

/**
 * Has the kernel itself send a frame out of an interface, `count` times (Linux 5.18). For a veth, the other end needs an XDP
 * program in its driver. What the interface has no room for is lost. Returns when all are sent.
 */
export function xdpSend(ifindex: number, frame: Uint8Array, count: number): void {
  const program = new Assembler().mov(1, ifindex).mov(2, 0).call(FUNC_REDIRECT).exit();
  const fd = load(BPF_PROG_TYPE_XDP, BPF_XDP, 0, program);
  const data = scratch(frame.length);
  data.u8.set(frame);
  try {
    bpf(BPF_PROG_TEST_RUN, 'bpf(PROG_TEST_RUN) of frames that are sent', (a) => {
      a.setUint32(0, fd, true);
      a.setUint32(8, frame.length, true);
      a.setBigUint64(16, BigInt(data.address), true);
      a.setUint32(32, count, true);
      a.setUint32(64, BPF_F_TEST_XDP_LIVE_FRAMES, true);
    });
  } finally {
    closeFd(fd);
  }
}

function link(program: number, ifindex: number, attachType: number, flags: number, what: string): number {
  return bpf(BPF_LINK_CREATE, what, (a) => {
    a.setUint32(0, program, true);
    a.setUint32(4, ifindex, true);
    a.setUint32(8, attachType, true);
    a.setUint32(12, flags, true);
  });
}

/**
 * Attaches an XDP program, in the driver if that can (natively), else generically.
 * @throws SysError EBUSY: the interface has another XDP program; EPERM
 */
export function xdpAttach(program: number, ifindex: number): { readonly link: number; readonly mode: XdpMode } {
  const what = `attach an XDP program to interface ${ifindex}`;
  try {
    return { link: link(program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE, what), mode: 'native' };
  } catch (e) {
    if (!(e instanceof SysError) || e.errno === errno.EBUSY || e.errno === errno.EPERM) throw e;
  }
  return { link: link(program, ifindex, BPF_XDP, XDP_FLAGS_SKB_MODE, what), mode: 'generic' };
}

/**
 * Has the frames that one interface sends or receives sent by, or received on, another one instead: a tc program
 * (tcx, Linux 6.6 and newer). Returns the link's descriptor.
 */
export function redirectAll(
  from: { readonly ifindex: number; readonly at: 'ingress' | 'egress' },
  to: { readonly ifindex: number; readonly as: 'received' | 'sent' },
): number {
  const program = new Assembler();
  if (to.as === 'received') program.mov(2, INJECTED).storeWord(1, SKB_TC_INDEX, 2);
  program
    .mov(1, to.ifindex)
    .mov(2, to.as === 'received' ? BPF_F_INGRESS : 0)
    .call(FUNC_REDIRECT);
  const what = `redirect the frames of interface ${from.ifindex} (tcx, Linux 6.6)`;
  return tcx(program, from.ifindex, from.at === 'ingress' ? BPF_TCX_INGRESS : BPF_TCX_EGRESS, what);
}

/**
 * Has the stack receive nothing that comes from an interface's wire, but what `redirectAll` has it receive. Packet
 * sockets get all of it before. Returns the link's descriptor.
 */
export function dropFromWire(ifindex: number): number {
  const program = new Assembler().loadWord(2, 1, SKB_TC_INDEX).mov(0, TCX_NEXT);
  program.skipIfEqual(2, INJECTED).mov(0, TCX_DROP);
  return tcx(program, ifindex, BPF_TCX_INGRESS, `drop what interface ${ifindex} receives (tcx, Linux 6.6)`);
}

function tcx(program: Assembler, ifindex: number, type: number, what: string): number {
  const fd = load(BPF_PROG_TYPE_SCHED_CLS, type, 0, program.exit());
  try {
    return link(fd, ifindex, type, 0, what);
  } finally {
    closeFd(fd);
  }
}

/** Has a packet socket get what comes from the wire, and not what `redirectAll` has its interface receive. */
export function receiveFromWire(socket: number): void {
  const program = new Assembler().loadWord(2, 1, SKB_TC_INDEX).mov(0, 0).skipIfEqual(2, INJECTED).mov(0, -1).exit();
  const fd = load(BPF_PROG_TYPE_SOCKET_FILTER, 0, 0, program);
  const value = scratch(4);
  value.view.setInt32(0, fd, true);
  try {
    check(libc.setsockopt(socket, SOL_SOCKET, SO_ATTACH_BPF, value.address, 4), 'setsockopt(SO_ATTACH_BPF)');
  } finally {
    closeFd(fd);
  }
}
