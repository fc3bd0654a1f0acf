/**
 * The C library functions used, through koffi (the only place that loads it). Pointers are numbers: user addresses on
 * Linux fit in 53 bits. Each thread that imports this has its own table, and reads its own errno.
 */
import koffi from 'koffi';
import { SysError } from './errno.ts';

const lib = koffi.load('libc.so.6');

const fn = <T extends (...args: never[]) => number>(name: string, args: string[], result = 'int'): T =>
  lib.func(name, result, args) as unknown as T;

type N = number;
export const libc = {
  memfd_create: fn<(name: string, flags: N) => N>('memfd_create', ['str', 'uint']),
  ftruncate: fn<(fd: N, length: N) => N>('ftruncate', ['int', 'long']),
  fallocate: fn<(fd: N, mode: N, ofs: N, length: N) => N>('fallocate', ['int', 'int', 'long', 'long']),
  lseek: fn<(fd: N, ofs: N, whence: N) => N>('lseek', ['int', 'long', 'int'], 'long'),
  fcntl: fn<(fd: N, cmd: N, arg: N) => N>('fcntl', ['int', 'int', 'long']),
  mmap: fn<(addr: N, len: N, prot: N, flags: N, fd: N, ofs: N) => N>(
    'mmap',
    ['size_t', 'size_t', 'int', 'int', 'int', 'long'],
    'long',
  ),
  munmap: fn<(addr: N, len: N) => N>('munmap', ['size_t', 'size_t']),
  eventfd: fn<(value: N, flags: N) => N>('eventfd', ['uint', 'int']),
  epoll_create1: fn<(flags: N) => N>('epoll_create1', ['int']),
  epoll_ctl: fn<(epfd: N, op: N, fd: N, event: N) => N>('epoll_ctl', ['int', 'int', 'int', 'size_t']),
  epoll_wait: fn<(epfd: N, events: N, max: N, timeoutMs: N) => N>('epoll_wait', ['int', 'size_t', 'int', 'int']),
  poll: fn<(fds: N, n: N, timeoutMs: N) => N>('poll', ['size_t', 'ulong', 'int']),
  read: fn<(fd: N, p: N, n: N) => N>('read', ['int', 'size_t', 'size_t'], 'long'),
  write: fn<(fd: N, p: N, n: N) => N>('write', ['int', 'size_t', 'size_t'], 'long'),
  preadv2: fn<(fd: N, iov: N, count: N, ofs: N, flags: N) => N>(
    'preadv2',
    ['int', 'size_t', 'int', 'long', 'int'],
    'long',
  ),
  readv: fn<(fd: N, iov: N, count: N) => N>('readv', ['int', 'size_t', 'int'], 'long'),
  writev: fn<(fd: N, iov: N, count: N) => N>('writev', ['int', 'size_t', 'int'], 'long'),
  open: fn<(path: string, flags: N, mode: N) => N>('open', ['str', 'int', 'uint']),
  close: fn<(fd: N) => N>('close', ['int']),
  socket: fn<(domain: N, type: N, protocol: N) => N>('socket', ['int', 'int', 'int']),
  socketpair: fn<(domain: N, type: N, protocol: N, sv: N) => N>('socketpair', ['int', 'int', 'int', 'size_t']),
  bind: fn<(fd: N, addr: N, len: N) => N>('bind', ['int', 'size_t', 'uint']),
  listen: fn<(fd: N, backlog: N) => N>('listen', ['int', 'int']),
  connect: fn<(fd: N, addr: N, len: N) => N>('connect', ['int', 'size_t', 'uint']),
  accept4: fn<(fd: N, addr: N, len: N, flags: N) => N>('accept4', ['int', 'size_t', 'size_t', 'int']),
  getsockopt: fn<(fd: N, level: N, name: N, value: N, len: N) => N>('getsockopt', [
    'int',
    'int',
    'int',
    'size_t',
    'size_t',
  ]),
  setsockopt: fn<(fd: N, level: N, name: N, value: N, len: N) => N>('setsockopt', [
    'int',
    'int',
    'int',
    'size_t',
    'uint',
  ]),
  sendto: fn<(fd: N, p: N, n: N, flags: N, addr: N, len: N) => N>(
    'sendto',
    ['int', 'size_t', 'size_t', 'int', 'size_t', 'uint'],
    'long',
  ),
  recvfrom: fn<(fd: N, p: N, n: N, flags: N, addr: N, len: N) => N>(
    'recvfrom',
    ['int', 'size_t', 'size_t', 'int', 'size_t', 'size_t'],
    'long',
  ),
  sendmsg: fn<(fd: N, msg: N, flags: N) => N>('sendmsg', ['int', 'size_t', 'int'], 'long'),
  recvmsg: fn<(fd: N, msg: N, flags: N) => N>('recvmsg', ['int', 'size_t', 'int'], 'long'),
  ioctl: fn<(fd: N, request: N, argument: N) => N>('ioctl', ['int', 'ulong', 'size_t']),
  syscall: fn<(number: N, a: N, b: N, c: N, d: N) => N>(
    'syscall',
    ['long', 'long', 'size_t', 'size_t', 'size_t'],
    'long',
  ),
  flock: fn<(fd: N, op: N) => N>('flock', ['int', 'int']),
  sched_getaffinity: fn<(pid: N, bytes: N, mask: N) => N>('sched_getaffinity', ['int', 'size_t', 'size_t']),
  sched_setaffinity: fn<(pid: N, bytes: N, mask: N) => N>('sched_setaffinity', ['int', 'size_t', 'size_t']),
  sched_yield: fn<() => N>('sched_yield', []),
  _exit: fn<(status: N) => N>('_exit', ['int']),
};

/** errno of this thread's last failed call. */
export const lastErrno = (): number => koffi.errno();

/** Result of a call that returns -1 on failure. @throws SysError naming the attempt. */
export function check(result: number, attempt: string): number {
  if (result < 0) throw new SysError(attempt, lastErrno());
  return result;
}

/** Address of a view's first byte. The view must not be resizable; keep a reference to it while the address is used. */
export function addressOf(view: ArrayBufferView): number {
  return Number(koffi.address(view));
}

/** The buffers that `scratch` made last. */
const recent: ArrayBuffer[] = [];
let made = 0;
/** How many of them are kept: more than one function makes and uses. */
const KEPT = 32;

/**
 * A buffer outside the JavaScript heap, zeroed, whose address is stable: for structures handed to the kernel. It is freed
 * when nothing refers to it any more, and not before 32 more were made: in compiled code a variable that is not read
 * again refers to nothing, though its address is just being handed to the kernel, which would write to freed memory.
 */
export function scratch(bytes: number): { view: DataView; u8: Uint8Array; address: number } {
  const buffer = new ArrayBuffer(bytes);
  recent[made++ % KEPT] = buffer;
  const u8 = new Uint8Array(buffer);
  return { view: new DataView(buffer), u8, address: addressOf(u8) };
}
