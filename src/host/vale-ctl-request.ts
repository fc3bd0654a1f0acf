/** What `ptnet vale-ctl` asks the daemon for: checked, carried out by vale-ctl.ts, answered. Control thread. */
import type { ControlReply, ValeCtlCommand } from '../abi/index.ts';
import { errno, type PeerCredentials, SysError } from '../os/index.ts';
import { parseRingConfig } from '../ports/index.ts';
import type { PortDefaults } from './config.ts';
import { shapeOf } from './shape.ts';
import type { Switchboard } from './switchboard.ts';

/**
 * Only the daemon's own user and root change anything.
 * @param asked as it came over the socket @throws SysError EINVAL: not such a request; EPERM; what the operation says
 */
export async function valeCtlRequest(
  switchboard: Switchboard,
  defaults: PortDefaults,
  asked: unknown,
  peer: PeerCredentials,
): Promise<ControlReply> {
  const command = checked(asked);
  const { letter } = command;
  if (letter !== 'l' && letter !== 'g' && peer.uid !== 0 && peer.uid !== process.getuid!()) {
    throw new SysError(`vale-ctl -${letter}: only the user of the daemon and root may do that`, errno.EPERM);
  }
  const owner = { pid: peer.pid, uid: peer.uid };
  const done = { ok: true, op: 'vale-ctl' } as const;
  switch (letter) {
    case 'n': {
      const { name, memId } = command;
      const given = command.config === undefined ? {} : parseRingConfig(command.config);
      const { bufSize, hugePages, ...config } = shapeOf(defaults, given);
      const own = { bufSize, hugePages };
      return { ...done, info: await switchboard.valeCtl((c) => c.newIf(name, config, own, memId, owner)) };
    }
    case 'r':
      await switchboard.valeCtl((c) => c.delIf(command.name));
      return done;
    case 'a':
    case 'h': {
      const { bufSize, hugePages, ...config } = shapeOf(defaults);
      const nic = { owner, config, own: { bufSize, hugePages }, memId: command.memId, host: letter === 'h' };
      return { ...done, portIndex: await switchboard.valeCtl((c) => c.attach(command.name, nic)) };
    }
    case 'd':
      return { ...done, portIndex: await switchboard.valeCtl((c) => c.detach(command.name)) };
    case 'l':
      return { ...done, ports: await switchboard.valeCtl((c) => c.list(command.name)) };
    case 'g':
      return { ...done, info: await switchboard.valeCtl((c) => c.info(command.name)) };
    default:
      throw new SysError(`vale-ctl: there is no -${String(letter)} here`, errno.EINVAL);
  }
}

/** @throws SysError EINVAL */
function checked(asked: unknown): ValeCtlCommand {
  const { letter, name, config, memId } = Object(asked) as Readonly<Record<string, unknown>>;
  const texts = [name, config, memId].every((value) => value === undefined || typeof value === 'string');
  if (typeof letter === 'string' && texts && (letter === 'l' || name !== undefined)) return asked as ValeCtlCommand;
  throw new SysError('vale-ctl: a letter and a name are wanted', errno.EINVAL);
}
