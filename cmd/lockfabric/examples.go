package main

import (
	"strings"

	"github.com/alecthomas/kong"
)

// examples are shown at the end of a command's help.
var examples = map[string][]string{
	"run": {
		"lockfabric run nightly-backup -- ./backup.sh",
		"lockfabric run nightly-backup --wait 0 --hold-at-least 1m -- ./backup.sh",
		"lockfabric run nightly-backup --wait 0 -q -E 0 -c 'cd /srv && ./backup.sh > backup.log'",
		"lockfabric run report --shared --wait 30s -- ./report.sh",
		"lockfabric run photos/2026/a --path -- ./edit.sh",
		"lockfabric run report --also sales --also stock=S -- ./report.sh",
		"lockfabric run encoders --semaphore 3 -- ./encode.sh film.mov",
		"lockfabric --server nats://nats1:4222 run deploy --meta ticket=OPS-7 -- ./deploy.sh",
	},
	"deadlocks": {"lockfabric deadlocks", "lockfabric deadlocks --watch"},
	"tree":      {"lockfabric tree photos", "lockfabric tree --watch photos/2026"},
	"top":       {"lockfabric top", "lockfabric top photos/ --sort rate", "lockfabric top --once"},
	"lock": {
		"token=$(lockfabric lock nightly-backup --wait 0) || exit",
		"(lockfabric lock reports && ./report.sh)",
		"lockfabric lock nightly-backup --stdin",
	},
	"elect": {
		"lockfabric elect scheduler --value host1:80 -- ./schedule.sh",
		"lockfabric elect scheduler --observe",
	},
	"barrier": {
		"lockfabric barrier sync -n 3 --wait 1m",
		"lockfabric barrier phase -n 3 -- ./work.sh",
	},
	"latch wait":       {"lockfabric latch wait migrated --count 2 --wait 10m"},
	"latch count-down": {"lockfabric latch count-down migrated --count 2"},
	"latch delete":     {"lockfabric latch delete migrated"},
	"serve": {
		"lockfabric serve --store /var/lib/lockfabric",
		"lockfabric serve --store /var/lib/lockfabric --listen 0.0.0.0:4222 --tls-cert s.pem --tls-key s.key --allow-user locks --password-file F",
	},
	"ls": {
		"lockfabric ls photos/",
		"lockfabric ls --long",
		"lockfabric ls --watch photos/",
		"lockfabric --output json ls",
	},
	"inspect": {
		"lockfabric inspect nightly-backup",
		"lockfabric inspect --watch nightly-backup",
	},
	"release": {
		"lockfabric release --force nightly-backup",
		"lockfabric release --force --now nightly-backup",
		"lockfabric release --force --prefix photos/",
	},
	"ui": {
		"lockfabric ui",
		"lockfabric --context prod ui --allow-release",
	},
	"permissions": {
		"lockfabric permissions --role client",
		"lockfabric --fabric prod permissions --role admin --as nsc",
	},
	"gc":         {"lockfabric gc --dry-run"},
	"doctor":     {"lockfabric --server nats://nats1:4222 doctor --strict"},
	"version":    {"lockfabric version"},
	"completion": {"lockfabric completion bash"},
	"help":       {"lockfabric help run", "lockfabric help --man > lockfabric.1"},
}

// pathOf is the name of a command, of several words where it stands under another.
func pathOf(n *kong.Node) string {
	name := n.Name
	for n = n.Parent; n != nil && n.Parent != nil; n = n.Parent {
		name = n.Name + " " + name
	}
	return name
}

// arrange completes the help of all commands: their examples, and their own flags before
// those of all commands.
func arrange(app *kong.Application) {
	all := &kong.Group{Key: "all", Title: "Flags of all commands:"}
	for _, f := range app.Flags {
		if f != app.HelpFlag {
			f.Group = all
		}
	}
	for _, n := range app.Leaves(false) {
		if lines := examples[pathOf(n)]; len(lines) > 0 {
			n.Detail = strings.TrimPrefix(n.Detail+"\n\nExamples:\n\n    "+strings.Join(lines, "\n    "), "\n\n")
		}
	}
}
