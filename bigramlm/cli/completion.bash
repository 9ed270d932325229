# TAB completion of bigramlm in bash. Lines of other programs are completed as before.

_bigramlm() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n' offered flags=$-
    local script='(@SCRIPTS@)\.py["'\'']?[[:space:]]' module='-m[[:space:]]+bigramlm[[:space:]]'
    if [[ ${1##*/} == bigramlm* || $line =~ $script || $line =~ $module ]] &&
        offered=$(COMP_WORDBREAKS=$COMP_WORDBREAKS @ANSWER@ bash "$line" 2>/dev/null </dev/null); then
        set -f
        COMPREPLY=($offered)
        [[ $flags == *f* ]] || set +f
        compopt -o nospace -o nosort +o default +o bashdefault 2>/dev/null
    else
        _bigramlm_other "$@"
    fi
}

# Completes as the shell did before: with the earlier rule of this program, or else with the rule for all programs.
_bigramlm_other() {
    local name=${1##*/} rule status
    local saved=_bigramlm_rule_${name//[^a-zA-Z0-9]/_}
    rule=${!saved-}
    if [[ -n $rule ]]; then
        _bigramlm_apply "$rule" "$@"
        return
    fi
    rule=$(complete -p -D 2>/dev/null) || return 0
    _bigramlm_apply "${rule/ -D/}" "$@"
    status=$?
    if ((status == 124)); then # a rule for this program has been loaded, in place of this one
        _bigramlm_register "$name"
        rule=${!saved-}
        status=0
        if [[ -n $rule ]]; then
            _bigramlm_apply "$rule" "$@"
            status=$?
        fi
    fi
    return $status
}

# Applies a rule, as printed by complete -p, to the current line.
_bigramlm_apply() {
    local rule=$1 function='' flags=$- IFS=$' \t\n' status=0
    local -a generated=()
    shift
    local name=$1 word=$2 previous=$3
    eval "set -- ${rule#complete}"
    compopt +o default +o bashdefault 2>/dev/null
    while (($# > 1)) || [[ ${1-} == -* ]]; do
        case $1 in
            -F) function=$2 && shift ;;
            -o) { compopt -o "$2" 2>/dev/null || true; } && shift ;;
            -[ACGPSWX]) generated+=("$1" "$2") && shift ;;
            -[df]) generated+=("$1") && compopt -o filenames 2>/dev/null ;;
            -*) generated+=("$1") ;;
        esac
        shift
    done
    if ((${#generated[@]})); then
        IFS=$'\n'
        set -f
        COMPREPLY=($(IFS=$' \t\n' && compgen "${generated[@]}" -- "$word" 2>/dev/null))
        [[ $flags == *f* ]] || set +f
        IFS=$' \t\n'
    fi
    if [[ -n $function ]]; then
        "$function" "$name" "$word" "$previous"
        status=$?
    fi
    return $status
}

# Makes the completion that of a program, and saves the earlier rule of the program.
_bigramlm_register() {
    local rule
    rule=$(complete -p "$1" 2>/dev/null)
    if [[ -n $rule && $rule != *' _bigramlm '* ]]; then
        printf -v "_bigramlm_rule_${1//[^a-zA-Z0-9]/_}" %s "$rule"
    fi
    complete -o default -o bashdefault -F _bigramlm "$1"
}

for _bigramlm_program in @PROGRAMS@; do
    _bigramlm_register "$_bigramlm_program"
done
unset _bigramlm_program
