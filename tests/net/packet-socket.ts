/** A raw packet socket (packet(7)) on an interface of this network namespace, for tests. */
import { check, lastErrno, libc, scratch } from '../../src/os/libc.ts';
import { closeFd, interfaceIndex } from '../../src/os/index.ts';

const AF_PACKET = 17;
const SOCK_RAW = 3;
const SOCK_NONBLOCK = 0x800;
const ETH_P_ALL_BE = 0x0300;
const SOL_PACKET = 263;
const PACKET_VNET_HDR = 15;

export class PacketSocket {
  readonly #fd: number;
  readonly #buffer = scratch(70_000);

  /** @param vnetHdr frames begin with a VirtIO network header of 10 bytes @param protocol 0: receives nothing */
  constructor(ifname: string, vnetHdr: boolean, receive = false) {
    const protocol = receive ? ETH_P_ALL_BE : 0;
    this.#fd = check(libc.socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, protocol), 'socket(AF_PACKET)');
    const on = scratch(4);
    on.view.setInt32(0, 1, true);
    if (vnetHdr) check(libc.setsockopt(this.#fd, SOL_PACKET, PACKET_VNET_HDR, on.address, 4), 'PACKET_VNET_HDR');
    const address = scratch(20); // struct sockaddr_ll
    address.view.setUint16(0, AF_PACKET, true);
    address.view.setUint16(2, protocol, true);
    address.view.setInt32(4, interfaceIndex(ifname), true);
    check(libc.bind(this.#fd, address.address, 20), `bind(${ifname})`);
  }

  /** Sends a frame. Returns 0 or the errno by which the kernel refuses it. */
  send(frame: Uint8Array): number {
    this.#buffer.u8.set(frame);
    return libc.write(this.#fd, this.#buffer.address, frame.length) < 0 ? lastErrno() : 0;
  }

  /** The next frame that arrived, if there is one. */
  receive(): Uint8Array | undefined {
    return readFd(this.#fd, this.#buffer);
  }

  close(): void {
    closeFd(this.#fd);
  }
}

/** One read of a descriptor: a frame, of a TAP interface or a packet socket. */
export function readFd(fd: number, buffer: ReturnType<typeof scratch>): Uint8Array | undefined {
  const n = libc.read(fd, buffer.address, buffer.u8.length);
  return n > 0 ? buffer.u8.slice(0, n) : undefined;
}
