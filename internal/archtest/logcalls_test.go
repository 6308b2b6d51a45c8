package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
)

// documentedKeys reads the keys off the table in docs/observability.md that has
// the heading "| key |".
func documentedKeys(doc string) map[string]bool {
	keys := map[string]bool{}
	_, table, _ := strings.Cut(doc, "| key | meaning |\n")
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		if parts := strings.Split(line, "`"); len(parts) > 2 {
			keys[parts[1]] = true
		}
	}
	return keys
}

// logViolations returns one sentence for each log call of a file whose message is
// no constant text, or that uses a key that is not documented. It knows loggers by
// their methods, since it reads the text alone; found is how many it saw.
func logViolations(path, text string, keys map[string]bool) (violations []string, found int, err error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, text, 0)
	if err != nil {
		return nil, 0, err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		say := func(format string, args ...any) {
			violations = append(violations, fmt.Sprintf("%s: %s", fset.Position(call.Pos()), fmt.Sprintf(format, args...)))
		}
		check := func(key ast.Expr) {
			if name, ok := literal(key); !ok {
				say("the key of an attribute is no constant text")
			} else if !keys[name] {
				say("key %q is not in the table of docs/observability.md", name)
			}
		}
		pairs, message := -1, -1
		switch name := sel.Sel.Name; {
		case ofSlog(sel):
			switch name {
			case "Any", "Bool", "Duration", "Float64", "Group", "Int", "Int64", "String", "Time", "Uint64":
				found++
				check(call.Args[0])
			}
			return true
		case !isLogger(sel.X):
			return true
		case name == "Debug" || name == "Info" || name == "Warn" || name == "Error":
			message, pairs = 0, 1
		case name == "DebugContext" || name == "InfoContext" || name == "WarnContext" || name == "ErrorContext":
			message, pairs = 1, 2
		case name == "Log":
			message, pairs = 2, 3
		case name == "LogAttrs":
			message = 2 // its attributes are calls of slog
		case name == "With":
			pairs = 0
		default:
			return true
		}
		found++
		if message >= 0 && message < len(call.Args) {
			if _, ok := literal(call.Args[message]); !ok {
				say("the message is no constant text")
			}
		}
		for i := pairs; pairs >= 0 && i < len(call.Args); i++ {
			if inner, ok := call.Args[i].(*ast.CallExpr); ok {
				if s, ok := inner.Fun.(*ast.SelectorExpr); ok && ofSlog(s) {
					continue // an attribute in place of a pair
				}
			}
			check(call.Args[i])
			i++ // its value
		}
		return true
	})
	return violations, found, nil
}

// isLogger knows a logger by its name: log, logger, or a field of that name.
func isLogger(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.Ident:
		return strings.EqualFold(x.Name, "log") || strings.EqualFold(x.Name, "logger")
	case *ast.SelectorExpr:
		return isLogger(x.Sel)
	}
	return false
}

func ofSlog(sel *ast.SelectorExpr) bool {
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == "slog"
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}
