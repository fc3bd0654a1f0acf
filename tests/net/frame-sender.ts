/** Sends one frame out of an interface. Run in a host. argv: interface, frame in hexadecimal digits. */
import { PacketSocket } from './packet-socket.ts';

const [ifname = '', hex = ''] = process.argv.slice(2);
const status = new PacketSocket(ifname, false).send(Uint8Array.from(Buffer.from(hex, 'hex')));
process.exit(status);
