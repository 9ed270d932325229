# TAB completion of bigramlm in zsh. Lines of other programs are completed as before.

_bigramlm() {
    local before="${(j: :)words[1,CURRENT-1]} " offered
    local script='(@SCRIPTS@)\.py["'\'']? ' module='-m +bigramlm '
    if [[ ${words[1]:t} == bigramlm* || $before =~ $script || $before =~ $module ]] &&
        offered=$(@ANSWER@ zsh "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null </dev/null); then
        local -a complete=() partial=()
        local line
        for line in ${(f)offered}; do
            if [[ $line == *' ' ]]; then complete+=("${line% }"); else partial+=("$line"); fi
        done
        compadd -V bigramlm -S '' -- $partial
        compadd -V bigramlm -- $complete
    else
        local rule=${_bigramlm_rules[${words[1]:t}]:-${_bigramlm_rules[python]:-_default}}
        eval "$rule"
    fi
}

if (( ! $+functions[compdef] )); then
    autoload -Uz compinit
    compinit -D -i
fi
typeset -gA _bigramlm_rules
() {
    local program
    for program in @PROGRAMS@; do
        if [[ ${_comps[$program]:-_bigramlm} != _bigramlm ]]; then
            _bigramlm_rules[$program]=$_comps[$program]
        fi
        compdef _bigramlm $program
    done
}
