/**
 * Accepting connections on an event loop, for the control socket and the device sockets. That no descriptor is left
 * (EMFILE, ENFILE) ends nothing: those who wait in the queue are accepted when some are closed. Whoever connects without end
 * leaves others their turns of the loop.
 */
import type { SysError } from '../os/index.ts';
import { acceptUnix, closeFd, watch } from '../os/index.ts';

/** Pause after an accept that failed, so that the level-triggered watch does not spin. */
const PAUSE_MS = 100;
/** Connections accepted in one turn of the event loop before others get theirs. */
const TURN = 16;

export interface Acceptor {
  /** Ends listening and closes the socket. */
  close(): void;
}

/**
 * @param fd a listening socket, which becomes the acceptor's
 * @param onClient gets each connection, and owns it
 * @param onFault called when accepting fails; it is tried again later
 */
export function acceptor(fd: number, onClient: (client: number) => void, onFault: (e: SysError) => void): Acceptor {
  let pause: NodeJS.Timeout | undefined;
  const idle = { readable: false, writable: false };
  const interest = { readable: true, writable: false };
  const watcher = watch(fd, interest, () => {
    try {
      for (let n = 0; n < TURN; n++) {
        const client = acceptUnix(fd);
        if (client < 0) return;
        onClient(client);
      }
    } catch (e) {
      watcher.update(idle);
      pause = setTimeout(() => watcher.update(interest), PAUSE_MS);
      onFault(e as SysError);
    }
  });
  return {
    close: () => {
      clearTimeout(pause);
      watcher.close();
      closeFd(fd);
    },
  };
}
