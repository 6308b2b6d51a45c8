package archtest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const maxLines = 450

// violations holds a tree against the table and returns one sentence for each
// thing that is wrong, sorted.
func violations(tree []source) []string {
	var found []string
	documented := make(map[string]bool) // every package, and whether it has its comment
	for _, s := range tree {
		documented[s.pkg] = documented[s.pkg] || isDoc(s)
		found = append(found, layoutViolations(s)...)
		for _, imported := range s.imports {
			if why := importViolation(s, imported); why != "" {
				found = append(found, fmt.Sprintf("%s imports %s: %s", s.path, imported, why))
			}
		}
	}
	for pkg, ok := range documented {
		l, known := layerOf(pkg)
		switch {
		case !known:
			found = append(found, fmt.Sprintf("%s is a new package: give it a line in the table of internal/archtest/layers_test.go", pkg))
		case !ok && l.program:
			found = append(found, pkg+" has no package comment in doc.go or main.go")
		case !ok:
			found = append(found, pkg+" has no package comment in doc.go")
		}
	}
	slices.Sort(found)
	return found
}

func isDoc(s source) bool {
	if s.doc == "" {
		return false
	}
	base := path.Base(s.path)
	l, _ := layerOf(s.pkg)
	return base == "doc.go" || l.program && base == "main.go"
}

func layoutViolations(s source) []string {
	var found []string
	if s.lines > maxLines {
		found = append(found, fmt.Sprintf("%s has %d lines, more than %d: perhaps two nouns", s.path, s.lines, maxLines))
	}
	if s.inits > 0 && !within(s.pkg, "cmd") {
		found = append(found, s.path+" has a func init: start-up work belongs to a constructor")
	}
	return found
}

// importViolation says why a file may not import a package, or nothing.
func importViolation(s source, imported string) string {
	from, known := layerOf(s.pkg)
	if !known {
		return "" // said once, for the package
	}
	if within(imported, natsServer) {
		if s.isTest() && from.serverInTests || !s.isTest() && from.server {
			return ""
		}
		return "the NATS server stays behind embedded"
	}
	if within(imported, prometheus) && !from.prometheus {
		return "the Prometheus client stays behind fabric/fabricprom"
	}
	if within(imported, "go.opentelemetry.io") {
		return "OpenTelemetry stays in fabric/fabricotel, a module of its own"
	}
	isTestLibrary := func(lib string) bool { return within(imported, lib) }
	if slices.ContainsFunc(testLibraries, isTestLibrary) && !s.isTest() && !from.testOnly {
		return "that is for tests"
	}
	if !within(imported, module) {
		return ""
	}
	pkg := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
	to, known := layerOf(pkg)
	switch {
	case !known:
		return "it is not in the table of internal/archtest/layers_test.go"
	case slices.Contains(from.imports, pkg):
		return ""
	case s.isTest() && (pkg == s.pkg || pkg == "embedded" || to.testOnly):
		return ""
	case pkg == "embedded":
		return "only programs and tests may start a server"
	case to.testOnly:
		return "that is support for tests"
	}
	return "imports go downwards only, along the edges of internal/archtest/layers_test.go"
}

// cycle returns a package that the table lets import itself over other ones, or
// nothing.
func cycle(table map[string]layer) string {
	const visiting, done = 1, 2
	state := make(map[string]int)
	var visit func(pkg string) string
	visit = func(pkg string) string {
		switch state[pkg] {
		case visiting:
			return pkg
		case done:
			return ""
		}
		state[pkg] = visiting
		for _, next := range table[pkg].imports {
			if at := visit(next); at != "" {
				return at
			}
		}
		state[pkg] = done
		return ""
	}
	for pkg := range table {
		if at := visit(pkg); at != "" {
			return at
		}
	}
	return ""
}
