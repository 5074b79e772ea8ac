"""Unit files that start the server with the user's session, as the user: a system service could not see his models."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

_SYSTEMD = """\
# {advice}
[Unit]
Description=Kamado model server
After=network.target

[Service]
ExecStart={command}
# Reads the settings again.
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
# SIGTERM drains: running answers may end first.
TimeoutStopSec=45
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
ReadWritePaths=%h
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=default.target
"""

_LAUNCHD = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- {advice} -->
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>kamado.serve</string>
  <key>ProgramArguments</key>
  <array>
{words}
  </array>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
  <key>ExitTimeOut</key><integer>45</integer>
</dict>
</plist>
"""


def unit_text(arguments: Sequence[str], *, platform: str = sys.platform, program: str | None = None) -> str:
    """A unit for this system that runs `kamado serve` with `arguments`. It holds no API key: the key file does."""
    words = [program or shutil.which("kamado") or str(Path(sys.argv[0]).absolute()), "serve", *arguments]
    if platform == "darwin":
        advice = "put it into ~/Library/LaunchAgents/kamado.serve.plist; launchctl load -w that file"
        items = "\n".join(f"    <string>{escape(word)}</string>" for word in words)
        return _LAUNCHD.format(advice=advice, words=items)
    advice = "put it into ~/.config/systemd/user/kamado.service; systemctl --user enable --now kamado"
    return _SYSTEMD.format(advice=advice, command=" ".join(_quoted(word) for word in words))


def _quoted(word: str) -> str:
    """A word of ExecStart: quoted, and % and $ made plain."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if not plain or any(c in plain for c in " \t'\";#\\") else plain
