/** Opening ports: by name through a daemon, or on the device sockets of a virtual machine. */
import type { OpenOptions } from '../abi/index.ts';
import type { PciDevice } from '../guest/index.ts';
import { connectVfioUserPci, Memdev, PtnetDriver } from '../guest/index.ts';
import { closeFd, defaultRunDir, errno, SysError } from '../os/index.ts';
import { controlRequest } from './control.ts';
import { NetmapPort } from './port.ts';

export interface DeviceOptions {
  /** Ask for a VirtIO network header in front of every frame (offloads). Default false; see `vnetHdrLen`. */
  readonly vnetHdr?: boolean;
}

/** Numbers and sizes of rings are those of the daemon's control protocol (src/abi/control.ts). */
export interface OpenPortOptions extends OpenOptions, DeviceOptions {
  /** The daemon's run directory (default: the user's). */
  readonly runDir?: string;
}

/**
 * Opens a netmap port by name, e.g. "vale0:x": the daemon makes the port and removes it when the port is closed or the
 * process ends.
 * @throws SysError: no daemon, not permitted, a bad name, no room; the message says what to do
 */
export async function openPort(name: string, options: OpenPortOptions = {}): Promise<NetmapPort> {
  const { runDir = defaultRunDir(), vnetHdr = false, ...rings } = options;
  const { reply, connection, fds } = await controlRequest(runDir, { op: 'open', port: name, options: rings });
  const [memdev, ptnet] = fds;
  if (memdev === undefined || ptnet === undefined) {
    for (const fd of [connection, ...fds]) closeFd(fd);
    throw new SysError(`the daemon in ${runDir} sent ${fds.length} descriptors for port ${name}, not 2`, errno.EPROTO);
  }
  return open(reply.port, memdev, ptnet, vnetHdr, () => closeFd(connection));
}

/**
 * Opens the devices of a virtual machine, as a driver in it would.
 * @param memdev the memdev's socket: its path, or a connected descriptor, which this takes over
 * @param ptnet the ptnet device's socket
 */
export function openDevice(
  memdev: string | number,
  ptnet: string | number,
  options: DeviceOptions = {},
): Promise<NetmapPort> {
  const name = typeof ptnet === 'string' ? ptnet : `fd ${ptnet}`;
  return open(name, memdev, ptnet, options.vnetHdr ?? false, () => undefined);
}

async function open(
  name: string,
  memdevSocket: string | number,
  ptnetSocket: string | number,
  vnetHdr: boolean,
  release: () => void,
): Promise<NetmapPort> {
  const undo: (() => void | Promise<void>)[] = [release];
  const unwind = async (): Promise<void> => {
    for (const step of undo.toReversed()) await step();
  };
  const connect = async (socket: string | number, what: string): Promise<PciDevice> => {
    const pci = await connectVfioUserPci(socket, `${what} of ${name}`);
    undo.push(() => pci.close());
    return pci;
  };
  try {
    const memdevPci = await connect(memdevSocket, 'memdev');
    const ptnetPci = await connect(ptnetSocket, 'ptnet device');
    const memdev = await Memdev.attach(memdevPci);
    undo.push(() => memdev.detach());
    const driver = await PtnetDriver.attach(ptnetPci, memdev, { vnetHdr });
    try {
      await driver.create();
      return new NetmapPort(name, driver, memdev, unwind);
    } catch (e) {
      await driver.detach().catch(() => undefined);
      throw e;
    }
  } catch (e) {
    await unwind().catch(() => undefined);
    throw e;
  }
}
