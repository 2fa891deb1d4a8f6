"""What a model folder's chat template may try: never to end, or to take all memory.

Only data. Each is a template; a chat through it must end in an error of that request, or in a text,
within the bounds of `megainfer.text.template_renderer`.
"""

ENDLESS = {
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "a power": "{{ (10 ** 9999999) | string | length }}",
    "a power of what is no constant": "{{ ((messages | length + 9) ** 99999999) % 7 }}",
    "a power in a comparison": "{% if 9 ** 99999999 > 1 %}x{% endif %}",
    "a macro that calls itself twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    ),
    "a recursive loop": (
        "{% set tree = [1, 1] %}{% for x in [tree, tree] recursive %}{{ loop.index }}"
        "{% for y in range(99999) %}{{ loop.index }}{% endfor %}"
        "{% for z in range(99999) %}{% for w in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
    ),
    "sums of lists": "{{ [range(99999) | list] * 9999 | sum(start=[]) | length }}",
    "sorting again and again": (
        "{% for a in range(99999) %}{% set x = range(99999) | sort(reverse=true) %}{% endfor %}"
    ),
    "replacing": "{{ ('a' * 9999999).replace('a', 'b' * 99) | length }}",
    "a filter in a loop": (
        "{% for a in range(99999) %}{% set x = ('a b ' * 9999) | title %}{% endfor %}"
    ),
    "membership": (
        "{% for a in range(99999) %}{% if a in (range(99999) | list) %}{% endif %}{% endfor %}"
    ),
    "a while of breaks": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% if b == 99998 %}{% break %}"
        "{% endif %}{% endfor %}{% endfor %}"
    ),
}

LARGE = {
    "indent": "{{ 'a\nb' | indent(9999999999) }}",
    "center": "{{ 'a' | center(99999999999) }}",
    "lipsum": "{{ lipsum(n=999999, html=false, min=999, max=9999) }}",
    "a product of texts": "{{ 'a' * 99999999999 }}",
    "a product of lists": "{{ ([1] * 9999999999) | length }}",
    "doubling by ~": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
        "{% endfor %}{{ ns.x }}"
    ),
    "doubling by +": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}{{ ns.x }}"
    ),
    "doubling by blocks": (
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}"
        "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}{{ ns.x }}"
    ),
    "a format's width": "{{ '%999999999999d' % 1 }}",
    "a format's width by name": "{{ '{:>99999999999}'.format('a') }}",
    "a filter's format": "{{ '%*d' | format(99999999999, 1) }}",
    "ljust": "{{ 'a'.ljust(99999999999) }}",
    "zfill": "{{ '1'.zfill(99999999999) }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(999999) }}",
    "joining": "{{ range(99999) | join('a' * 999999) }}",
    "batches": "{{ [1] | batch(9999999999, 'x') | list | length }}",
    "slices": "{{ [1] | slice(9999999999, 'x') | list | length }}",
    "an indented JSON": "{{ messages | tojson(indent=99999999999) }}",
    "bytes of a number": "{{ (1).to_bytes(99999999999, 'big') | length }}",
    "replacing by a long text": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "a text without end": ("{% for a in range(99999) %}{{ 'abcdefgh' * 9999 }}{% endfor %}"),
    "lists of lists": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
        "{% endfor %}{{ ns.x | length }}"
    ),
}

DEEP = {
    "brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "lists": "{{ " + "[" * 100_000 + "]" * 100_000 + " }}",
    "blocks": "{% if 1 %}" * 20_000 + "{% endif %}" * 20_000,
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "filters": "{{ 'a'" + " | upper" * 50_000 + " }}",
    "a sum": "{{ 1" + " + 1" * 50_000 + " }}",
}

BOMBS = {**ENDLESS, **LARGE, **DEEP}
QUICK = ("nested loops", "a power", "indent", "doubling by ~", "lipsum", "brackets")
"""Those that every run of the tests tries."""
