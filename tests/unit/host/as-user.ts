/** A request to the control socket by a process of another user (only root can start one). */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { ControlRequest } from '../../../src/abi/index.ts';

const script = `
const { createConnection } = require('node:net');
const [path, line] = process.argv.slice(1);
const socket = createConnection(path, () => { if (line) socket.write(line + '\\n'); });
socket.on('data', (d) => { process.stdout.write(d); if (String(d).endsWith('\\n')) process.exit(0); });
socket.on('error', (e) => { process.stderr.write(e.code); process.exit(1); });
socket.on('end', () => process.exit(0));
`;

/** @param path the socket, if not the control socket of the run directory */
export async function asUser(
  uid: number,
  runDir: string,
  request: ControlRequest | undefined,
  path = `${runDir}/control.sock`,
): Promise<{ reply?: string; error?: string }> {
  const line = request === undefined ? '' : JSON.stringify(request);
  const child = spawn(process.execPath, ['-e', script, path, line], { uid, gid: uid, cwd: '/', env: {} });
  let [reply, error] = ['', ''];
  child.stdout.on('data', (d) => (reply += String(d)));
  child.stderr.on('data', (d) => (error += String(d)));
  await once(child, 'close');
  return error === '' ? { reply } : { error };
}
