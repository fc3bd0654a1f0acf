/**
 * What carries messages: a byte stream with descriptors attached to bytes, never blocking. Here the UNIX socket; the
 * one without sockets, for tests and fuzzers, is in memory-transport.ts.
 */
import { closeFd, MessageSocket, type Received, type Watch, watch } from '../os/index.ts';

export interface Ready {
  readable: boolean;
  writable: boolean;
}

export interface Transport {
  /** Reads what is there into `into`, at most its length. The caller owns the descriptors it gets. @throws SysError */
  receive(into: Uint8Array): Received;
  /**
   * Writes what fits now; returns how many bytes, 0 if none. Descriptors go with the first byte and stay the caller's.
   * @throws SysError if the other end is gone (EPIPE)
   */
  send(bytes: Uint8Array, fds?: readonly number[]): number;
  /** Calls back when ready, level-triggered; waits for readable until `update` says otherwise. At most one watch. */
  watch(onReady: (ready: Ready) => void): Watch;
  /** Close the watch first. */
  close(): void;
}

/**
 * A transport over a connected UNIX stream socket, which it owns from now on.
 * @param maxFds most descriptors accepted in one message; more of them end the connection (MSG_CTRUNC, R17)
 */
export function socketTransport(fd: number, maxFds = 16): Transport {
  const socket = new MessageSocket(fd, maxFds);
  let open = true;
  return {
    receive: (into) => socket.receive(into),
    send: (bytes, fds) => socket.send(bytes, fds),
    watch: (onReady) => watch(fd, { readable: true, writable: false }, onReady),
    close: () => {
      if (open) closeFd(fd);
      open = false;
    },
  };
}
