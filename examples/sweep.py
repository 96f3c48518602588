"""A sweep: one recipe with a range, measured on spawned processes; killed and run again it goes on where it was.

python examples/sweep.py [MODEL]
"""

import sys

import kobza

if __name__ == "__main__":
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
    recipe = kobza.Recipe.from_yaml(f"""
        title: Noise on the input table
        open: "{model}"
        steps:
          - noise: {{strength: 0.1..1.6:*4, where: embed.in}}
        measures: [bits_per_byte]
        text: ["topics[:1000]"]
    """)
    print(kobza.sweep(recipe))
