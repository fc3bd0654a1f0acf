/** Where a daemon keeps its sockets, and where its clients look for it. */
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * The run directory used when none is given: /run/ptnet for root, else `ptnet` in the user's runtime directory
 * (XDG_RUNTIME_DIR, /run/user/UID), else ptnet-UID where temporary files go. Creates nothing: whoever creates or uses it
 * checks that it is private (R21).
 */
export function defaultRunDir(): string {
  const uid = process.getuid!();
  if (uid === 0) return '/run/ptnet';
  const runtime = process.env['XDG_RUNTIME_DIR'] ?? `/run/user/${uid}`;
  return existsSync(runtime) ? join(runtime, 'ptnet') : join(tmpdir(), `ptnet-${uid}`);
}
